// Smoke checks of openai-node and the Vercel AI SDK; usage: clients.mjs NAME OPEN_URL KEYED_URL MODEL.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embed, generateObject, generateText, streamText, tool } from "ai";
import OpenAI from "openai";
import { z } from "zod";

const [name, open, keyed, model] = process.argv.slice(2);
const WORDS = "Hello there, friend";
const schema = z.object({ name: z.string() });
const messages = [{ role: "user", content: "hello" }];
const cut = [{ role: "user", content: "cut" }];

function openaiNode() {
  const client = new OpenAI({ baseURL: open, apiKey: "any", maxRetries: 0 });
  const locked = new OpenAI({ baseURL: keyed, apiKey: "wrong", maxRetries: 0 });
  const chat = (more) => client.chat.completions.create({ model, messages, ...more });
  const read = async (more) => {
    const chunks = [];
    for await (const chunk of await chat({ stream: true, ...more })) chunks.push(chunk);
    return chunks;
  };
  const text = (chunks) => chunks.map((one) => one.choices[0]?.delta.content ?? "").join("");
  const refused = (work, status, code) =>
    assert.rejects(work, (error) => error.status === status && error.code === code && Boolean(error.type));
  return {
    chat: async () => assert.equal((await chat()).choices[0].message.content, WORDS),
    stream: async () => assert.equal(text(await read()), WORDS),
    stream_usage: async () => {
      const chunks = await read({ stream_options: { include_usage: true } });
      assert.equal(chunks.at(-1).usage.total_tokens, 12);
    },
    tool_call: async () => {
      const parameters = { type: "object", properties: {} };
      const tools = [{ type: "function", function: { name: "weather", parameters } }];
      const [choice] = (await chat({ tools, tool_choice: "required" })).choices;
      assert.equal(choice.finish_reason, "tool_calls");
      assert.equal(choice.message.tool_calls[0].function.name, "weather");
    },
    json_schema: async () => {
      const properties = { name: { type: "string" } };
      const person = { type: "object", properties, required: ["name"], additionalProperties: false };
      const json_schema = { name: "person", strict: true, schema: person };
      const found = await chat({ response_format: { type: "json_schema", json_schema } });
      assert.deepEqual(JSON.parse(found.choices[0].message.content), { name: "Ada" });
    },
    embeddings: async () => {
      const found = await client.embeddings.create({ model, input: "hello" });
      assert.deepEqual(Array.from(found.data[0].embedding), [0.5, -0.25]);
    },
    not_found: () => refused(chat({ model: "absent" }), 404, "model_not_found"),
    unauthorized: () =>
      refused(locked.chat.completions.create({ model, messages }), 401, "invalid_api_key"),
    cut_stream: () => assert.rejects(read({ messages: cut }), OpenAI.APIError),
  };
}

function vercel() {
  const provider = (baseURL, apiKey) =>
    createOpenAICompatible({
      name: "dialoop", baseURL, apiKey, includeUsage: true, supportsStructuredOutputs: true,
    });
  const ours = provider(open, "any");
  const base = { model: ours(model), messages, maxRetries: 0 };
  const read = async (more) => {
    const parts = [];
    for await (const part of streamText({ ...base, onError() {}, ...more }).fullStream) {
      parts.push(part);
    }
    return parts;
  };
  const refused = (work, status, code) =>
    assert.rejects(work, (error) =>
      error.statusCode === status && JSON.parse(error.responseBody).error.code === code);
  return {
    chat: async () => assert.equal((await generateText(base)).text, WORDS),
    stream: async () => {
      const said = (await read()).filter((part) => part.type === "text-delta");
      assert.equal(said.map((part) => part.text).join(""), WORDS);
    },
    stream_usage: async () => {
      const last = (await read()).find((part) => part.type === "finish");
      assert.equal(last.totalUsage.totalTokens, 12);
    },
    tool_call: async () => {
      const tools = { weather: tool({ description: "weather", inputSchema: z.object({}) }) };
      const found = await generateText({ ...base, tools, toolChoice: "required" });
      assert.equal(found.finishReason, "tool-calls");
      assert.equal(found.toolCalls[0].toolName, "weather");
    },
    json_schema: async () =>
      assert.deepEqual((await generateObject({ ...base, schema })).object, { name: "Ada" }),
    embeddings: async () => {
      const found = await embed({ model: ours.textEmbeddingModel(model), value: "hello" });
      assert.deepEqual(found.embedding, [0.5, -0.25]);
    },
    not_found: () => refused(generateText({ ...base, model: ours("absent") }), 404, "model_not_found"),
    unauthorized: () =>
      refused(generateText({ ...base, model: provider(keyed, "wrong")(model) }), 401, "invalid_api_key"),
    // This client raises nothing out of a stream: it tells an `error` part instead.
    cut_stream: async () =>
      assert.ok((await read({ messages: cut })).some((part) => part.type === "error")),
  };
}

const found = {};
for (const [id, check] of Object.entries({ "openai-node": openaiNode, vercel }[name]())) {
  try {
    await check();
    found[id] = "passed";
  } catch (error) {
    found[id] = `failed: ${error.name}: ${error.message}`;
  }
}
console.log(JSON.stringify(found));
