"""Rollouts by vLLM itself, where it is installed: its probabilities follow the policy's weights.

Tolerance: 1e-3 nats a token in float32. `VLLM_CPU_KVCACHE_SPACE=1` and
`VLLM_CPU_OMP_THREADS_BIND=nobind` keep it small on a CPU.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny import make_tiny_checkpoint

from dialoop.core.device import find
from dialoop.models.load import load_model
from dialoop.train.batch import Step, collate
from dialoop.train.checkpoint import trained
from dialoop.train.online import answered
from dialoop.train.rollouts import Policy
from dialoop.train.rollouts.vllm import VllmRollout
from dialoop.train.tuners import Tuner
from dialoop.train.tuners.full import Full
from dialoop.train.tuners.lora import Lora
from dialoop.train.view import View, use_packed_attention

pytest.importorskip("vllm", reason="vLLM is not installed", exc_type=ImportError)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PROMPTS = [np.arange(5, 5 + n, dtype=np.int32) for n in (3, 9)]
STOPS = tuple(range(2, 60))


@torch.no_grad()
def move(model: torch.nn.Module, seed: int) -> None:
    """As an update would, only further."""
    chance = torch.Generator().manual_seed(seed)
    for parameter in trained(model).values():
        noise = torch.randn(parameter.shape, generator=chance).to(parameter.device)
        parameter.add_(0.05 * noise)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "tuner", [Lora(rank=4), Lora(rank=4, use_rslora=True), Full()], ids=["lora", "rslora", "full"]
)
def test_its_probabilities_are_the_policy_s_after_every_update(
    tuner: Tuner, tmp_path: Path
) -> None:
    tiny = make_tiny_checkpoint(tmp_path / "model", hidden=256)
    model = load_model(tiny, device=find(DEVICE), dtype="fp32")
    use_packed_attention(model)
    tuner.prepare(model, 0)
    settings = VllmRollout(max_new_tokens=12, temperature=0.7, gpu_share=0.2, eager=True)
    policy = Policy(model, STOPS, tuner, tiny, "fp32", None, 32)
    sampler = settings.open(policy)
    before: list[np.ndarray] = []
    for update in range(3):
        found = sampler.sample(PROMPTS, 8, [3, 4])
        again = sampler.sample(PROMPTS[1:], 8, [4])
        assert [a.ids.tolist() for a in again[0]] == [a.ids.tolist() for a in found[1]]
        pairs = [(p, a) for p, group in zip(PROMPTS, found, strict=True) for a in group]
        for _, answer in pairs:
            is_stop = np.isin(answer.ids, STOPS)
            assert not is_stop[:-1].any()
            assert is_stop[-1] == answer.is_complete
            assert answer.is_complete or len(answer.ids) == 12
        batch = collate([answered(p, a) for p, a in pairs], model.device, Step(1.0, 1))
        with torch.no_grad():
            expected = View(model).token_logps(batch, temperature=0.7).cpu().numpy()
        got = np.concatenate([a.logps for _, a in pairs if a.logps is not None])
        np.testing.assert_allclose(got, expected, atol=1e-3)
        before.append(got)
        move(model, update)
    assert len({len(values) for values in before}) > 1 or np.ptp(before, 0).max() > 0.1
    assert sampler.sample([], 8, []) == []
