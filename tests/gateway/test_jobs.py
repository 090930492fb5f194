"""Job files that are shown to people are jobs: the recipes, and those of the guide."""

import re
from pathlib import Path

import pytest

from dialoop.core import jobfile
from dialoop.core.errors import UserError
from dialoop.gateway.spec import GatewayJob

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes/gateway").glob("*.yaml"))
SECRETS = {
    "ENGINE_KEY": "sk-engine",
    "DATABASE_URL": "postgresql://u:p@db/dialoop",
    "REDIS_URL": "redis://redis:6379/0",
}


def test_there_are_recipes_and_they_are_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    jobs = {path.stem: jobfile.load(GatewayJob, path) for path in RECIPES}
    assert set(jobs) == {"minimal", "production"}
    job = jobs["production"]
    assert (job.database, job.redis) == (SECRETS["DATABASE_URL"], SECRETS["REDIS_URL"])
    keys = {engine.api_key.get_secret_value() for engine in job.engines if engine.api_key}
    assert keys == {"sk-engine"}
    assert [version.weight for version in job.models["desk"].versions] == [95, 5]


def test_a_recipe_asks_for_its_secrets_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRETS:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="the environment has no variable `ENGINE_KEY`"):
        jobfile.load(GatewayJob, ROOT / "recipes/gateway/production.yaml")


def test_the_guide_s_job_files_are_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    text = (ROOT / "docs/how-to/gateway.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        file = tmp_path / "job.yaml"
        file.write_text(block if "engines:" in block else block + "engines: [http://e/v1]\n")
        jobfile.load(GatewayJob, file)
