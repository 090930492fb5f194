"""Every development data file: how many rows it has and how many of them can be used."""

import csv
import json
from pathlib import Path

import pytest

from dialoop.core.events import ignore
from dialoop.data.run import ConvertResult, convert
from dialoop.data.spec import ConvertJob

# file: (rows, kept, rejected by reason)
USABLE = {
    "sft/alpaca_zh_demo.json": 486,
    "sft/alpaca_en_demo.json": 495,
    "sft/identity.json": 40,
    "sft/v1_sft_demo.jsonl": 247,
    "sft/oaast_sft_zh.json": 400,
    "sft/sharegpt_zh_1K_format.jsonl": 491,
    "sft/medical_sft_1K_format.jsonl": 477,
    "sft/Belle_open_source_1k.json": 493,
    "sft/openai_sft.jsonl": 62,
    "sft/ms_swift_layouts": 36,
    "dialog/crosswoz/val.json.zip": 500,
    "dialog/multiwoz/val.json.zip": 999,
    "dialog/camrest/val.json.zip": 135,
    "dialog/kdconv/travel_dev.json.zip": 150,
    "dialog/kdconv/film_dev.json.zip": 150,
    "dialog/huixiangdou/gt_good.txt": 318,
    "dialog/huixiangdou/gt_bad.txt": 829,
    "preference/dpo_zh_demo.json": 152,
    "preference/dpo_en_demo.json": 131,
    "preference/kto_en_demo.json": 148,
    "preference/v1_dpo_demo.jsonl": 4,
    "preference/dpo_zh_500.jsonl": 260,
    "preference/toolcall_dpo_zh_demo.jsonl": 8,
    "preference/medical_reward_test.json": 46,
    "tools/glaive_toolcall_zh_demo.json": 137,
    "tools/glaive_toolcall_en_demo.json": 157,
    "tools/reason_tool_use_demo_50.jsonl": 21,
    "tools/bfcl/BFCL_v4_simple_python.json": 200,
    "tools/bfcl/BFCL_v4_multi_turn_base.json": 100,
    "retrieval/medical_qa_内科_gbk.csv": 2200,
    "retrieval/medical_corpus.txt": 39,
    "multimodal/mllm_demo.json": 6,
    "corpus/c4_demo.jsonl": 300,
    "messy/alpaca_zh_gbk_crlf.csv": 200,
    "messy/alpaca_zh_utf8_bom.csv": 150,
    "messy/alpaca_zh_utf16.tsv": 80,
    "messy/medical_qa_semicolon_gb18030.csv": 150,
    "messy/mixed_layouts.jsonl": 215,
    "kb": 120,
}
PARTLY = {
    "preference/hh_rlhf_harmless_base_test.jsonl.gz": (1077, {"empty answer": 3}),
    "preference/oaast_rm_zh.json": (416, {"chosen and rejected are the same": 2}),
    "dialog/seed_nurse_role.jsonl": (66, {"no known layout": 66}),
    "sft/dataset_info.json": (104, {"no known layout": 104}),
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIALOOP_HOME", str(tmp_path / "home"))


def _convert(tmp_path: Path, path: Path) -> ConvertResult:
    return convert(ConvertJob(paths=[str(path)], output=tmp_path / "out.jsonl"), ignore)


@pytest.mark.parametrize(("name", "rows"), USABLE.items(), ids=str)
def test_every_row_of_a_sound_file_is_kept_and_reads_back(
    shared_data: Path, tmp_path: Path, name: str, rows: int
) -> None:
    result = _convert(tmp_path, shared_data / name)
    assert (result.read, result.kept, result.rejected) == (rows, rows, 0), result.reasons
    again = convert(ConvertJob(paths=[str(result.output)], output=tmp_path / "again.jsonl"), ignore)
    assert again.output.read_bytes() == result.output.read_bytes()


@pytest.mark.parametrize(("name", "expected"), PARTLY.items(), ids=str)
def test_rows_that_cannot_train_are_rejected_for_the_right_reason(
    shared_data: Path, tmp_path: Path, name: str, expected: tuple[int, dict[str, int]]
) -> None:
    rows, reasons = expected
    job = ConvertJob(paths=[str(shared_data / name)], output=tmp_path / "out.jsonl")
    if rows == sum(reasons.values()):
        with pytest.raises(Exception, match="gives no usable row"):
            convert(job, ignore)
    else:
        result = convert(job, ignore)
        assert result.read == rows
        assert result.kept == rows - sum(reasons.values())
    assert reasons == result_reasons(tmp_path / "out.rejected.jsonl")


def result_reasons(path: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        reason = json.loads(line)["reason"].partition(":")[0]
        counts[reason] = counts.get(reason, 0) + 1
    return counts


REASONS = {
    "cut": "not JSON",
    "comma": "not JSON",
    "single": "not JSON",
    "two": "not JSON",
    "nan": "not JSON",
    "badutf8": "bytes that are not utf-8",
    "nullout": "empty answer",
    "emptyout": "empty answer",
    "notdict": "not an object",
}


def test_the_damaged_lines_are_found_exactly(shared_data: Path, tmp_path: Path) -> None:
    with (shared_data / "messy/broken.expect.tsv").open(encoding="utf-8") as file:
        damage = {int(r["line"]): r["damage"] for r in csv.DictReader(file, delimiter="\t")}
    result = _convert(tmp_path, shared_data / "messy/broken.jsonl")
    found = {
        (row["line"], row["reason"].partition(":")[0])
        for row in map(json.loads, result.rejected_path.read_text(encoding="utf-8").splitlines())
    }
    expected = {(line, REASONS[kind]) for line, kind in damage.items() if kind in REASONS}
    assert found == expected
    blank = sum(kind == "blank" for kind in damage.values())
    assert result.read == 94 - blank
    assert result.kept == result.read - len(expected)


def test_duplicates_go_only_when_asked(shared_data: Path, tmp_path: Path) -> None:
    paths = [str(shared_data / "messy/broken.jsonl")]
    counts = {}
    for dedupe in ("off", "exact", "near"):
        job = ConvertJob.model_validate(
            {"paths": paths, "output": tmp_path / "o.jsonl", "cleaning": {"dedupe": dedupe}}
        )
        counts[dedupe] = convert(job, ignore).duplicates
    assert counts == {"off": 0, "exact": 1, "near": 2}
