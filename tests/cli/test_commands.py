"""Commands that people type, as they stand, against the real catalog."""

import json
import shlex
from pathlib import Path

from tests.cli.program import dialoop

ROOT = Path(__file__).parents[2]

OLD_SPELLINGS = (
    "sft --model_type internlm3-8b --train_type qlora --dataset alpaca-en --gpu_ids 0"
    " --max_length 2048 --batch_size 1 --num_train_epochs 3 --lora_rank 64"
    " --output_dir ./output/internlm3-alpaca --dry-run"
)


def test_a_training_command_in_old_spellings_parses_and_plans() -> None:
    done = dialoop(*shlex.split(OLD_SPELLINGS), root=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(dialoop(*shlex.split(OLD_SPELLINGS), "--json", root=ROOT).stdout)
    job, plan = found["job"], found["plan"]
    assert job["objective"]["kind"] == "sft"
    assert (job["tuner"]["kind"], job["tuner"]["rank"]) == ("qlora", 64)
    assert job["data"]["dataset"] == ["alpaca-en"]
    assert (job["max_length"], job["batch_size"], job["epochs"]) == (2048, 1, 3)
    assert job["output"] == "output/internlm3-alpaca"
    assert plan["total_parameters"] > 7e9
    assert not (ROOT / "output" / "internlm3-alpaca").exists(), "a plan makes nothing"


def test_a_resolved_job_is_a_job_file(tmp_path: Path) -> None:
    data = json.loads(dialoop(*shlex.split(OLD_SPELLINGS), "--json", root=ROOT).stdout)
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(data["job"]), encoding="utf-8")
    again = dialoop("sft", str(file), "--lora_rank", "32", "--dry-run", "--json", root=ROOT)
    assert json.loads(again.stdout)["job"]["tuner"]["rank"] == 32
    wrong = dialoop("pt", str(file), "--dry-run", root=ROOT)
    assert wrong.returncode == 2
    assert "`objective.kind` is `sft`, but this verb means `pt`" in wrong.stderr


def test_data_converts_with_positional_paths(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text('{"query": "hello there", "response": "hi"}\n{broken\n', encoding="utf-8")
    out = tmp_path / "out.jsonl"
    home = str(tmp_path / "home")
    done = dialoop(
        "data", "convert", str(source), "-o", str(out), "--json", root=ROOT, DIALOOP_HOME=home
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert (counts["read"], counts["kept"], counts["rejected"]) == (2, 1, 1)
    assert len(out.read_text(encoding="utf-8").splitlines()) == 1
