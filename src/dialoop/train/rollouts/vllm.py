"""Answers by vLLM on the same machine, which gets the policy's weights before every step.

An adapter goes over as a LoRA request of a new number at each step; other tuners write their whole
weights, which vLLM loads anew. Log-probabilities come from vLLM as it sampled, so that the ratio of
the loss makes up for what its kernels round differently; where `top_p` or `top_k` cuts the
distribution they are another one's than the loss has, and are left out.

Written against the interface of vLLM 0.26: `LLM`, `LoRARequest`, `SamplingParams`,
`logprobs_mode="processed_logprobs"`, and the workers' `update_config` and `reload_weights`. It has
not been run: no machine at hand has CUDA and that package.
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
from pydantic import Field, PositiveInt
from typing_extensions import override

from dialoop.core.errors import MachineError
from dialoop.models.merge import COMPANIONS
from dialoop.train.adapter import Adapter
from dialoop.train.rollouts import Answer, RolloutOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dialoop.train.rollouts import Policy


class VllmRollout(RolloutOption, frozen=True):
    """Sample by vLLM, which shares the GPU with training."""

    kind: Literal["vllm"] = "vllm"
    gpu_share: float = Field(default=0.4, gt=0, lt=1)
    """Share of the GPU's memory that vLLM may take, its copy of the model included."""
    max_length: PositiveInt | None = None
    """Longest prompt and answer together; the model's own limit when left out."""

    @override
    def open(self, policy: Policy) -> Vllm:
        """Start vLLM on the base model.

        Raises:
            MachineError: vLLM is not installed, or training is not on CUDA.
        """
        if find_spec("vllm") is None:
            raise MachineError(
                "rollouts by vLLM need the package `vllm`, which is not installed",
                hint="pip install vllm, or take --objective.rollout.kind policy",
            )
        if policy.model.device.type != "cuda":
            raise MachineError(
                f"rollouts by vLLM need CUDA; training is on {policy.model.device.type}",
                hint="take --objective.rollout.kind policy",
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
        lora: dict[str, Any] = {}
        if isinstance(policy.tuner, Adapter):
            ranks = (policy.tuner.rank, *policy.tuner.rank_pattern.values())
            lora = {"enable_lora": True, "max_loras": 1, "max_lora_rank": _rank(max(ranks))}
        self._llm: Any = self._vllm.LLM(
            model=str(policy.base),
            dtype="bfloat16" if policy.dtype == "bf16" else "float32",
            gpu_memory_utilization=settings.gpu_share,
            max_model_len=settings.max_length,
            logprobs_mode="processed_logprobs",
            **lora,
        )

    def sample(self, prompts: Sequence[np.ndarray], num: int, seed: int) -> list[list[Answer]]:
        """Several answers to each prompt by the policy's present weights."""
        params = self._vllm.SamplingParams(
            n=num,
            temperature=self._settings.temperature,
            top_p=self._settings.top_p,
            top_k=self._settings.top_k or -1,
            max_tokens=self._settings.max_new_tokens,
            stop_token_ids=list(self._policy.stop_ids),
            seed=seed,
            logprobs=0,
            detokenize=False,
        )
        inputs = [{"prompt_token_ids": prompt.tolist()} for prompt in prompts]
        folder = Path(tempfile.mkdtemp(prefix="dialoop-policy-"))
        try:
            request = self._give_weights(folder)
            outputs = self._llm.generate(inputs, params, lora_request=request, use_tqdm=False)
        finally:
            shutil.rmtree(folder)
        is_whole = self._settings.top_p == 1 and not self._settings.top_k
        return [[_answer(one, is_whole=is_whole) for one in output.outputs] for output in outputs]

    def _give_weights(self, folder: Path) -> Any:
        """Bring the policy's weights over; the request that names them, for an adapter."""
        policy = self._policy
        policy.tuner.save(policy.model, folder, str(policy.base), policy.dtype)
        if isinstance(policy.tuner, Adapter):
            number = next(self._numbers)
            requests: Any = importlib.import_module("vllm.lora.request")
            return requests.LoRARequest(f"policy-{number}", number, str(folder))
        for pattern in COMPANIONS:
            for file in policy.base.glob(pattern):
                shutil.copyfile(file, folder / file.name)
        place = {"model_config": {"model": str(folder)}}
        self._llm.collective_rpc("update_config", args=(place,))
        self._llm.collective_rpc("reload_weights")
        self._llm.reset_prefix_cache()
        return None


def _answer(output: Any, *, is_whole: bool) -> Answer:
    """An answer, with its log-probabilities where they are of the whole distribution."""
    ids = list(output.token_ids)
    logps = [place[token].logprob for place, token in zip(output.logprobs, ids, strict=True)]
    known = np.asarray(logps, np.float32) if is_whole else None
    return Answer(np.asarray(ids, np.int32), output.finish_reason == "stop", known)


def _rank(rank: int) -> int:
    """The smallest rank that vLLM makes room for and that holds this one."""
    return next(n for n in (8, 16, 32, 64, 128, 256, 320, 512) if n >= rank)
