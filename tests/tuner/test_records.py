"""Logs survive damage, strangers and full disks; what is written is what is read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_samples import SAMPLE, record

from tcomp.errors import RecordError
from tcomp.tuner.records import LogWriter, distinct, parse_line, read_log, write_log


def test_a_record_reads_back_equal() -> None:
    assert parse_line(SAMPLE.to_line()) == SAMPLE


def test_rewriting_with_another_key_order_keeps_the_checksum() -> None:
    shuffled = json.dumps(dict(reversed(json.loads(SAMPLE.to_line()).items())), indent=None)
    assert parse_line(shuffled) == SAMPLE


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_and_never_crash(data: bytes) -> None:
    with pytest.raises(RecordError):
        parse_line(data)


@given(st.integers(0, len(SAMPLE.to_line()) - 1))
def test_any_cut_of_a_line_is_refused(length: int) -> None:
    with pytest.raises(RecordError):
        parse_line(SAMPLE.to_line()[:length])


def test_an_edited_line_is_refused() -> None:
    with pytest.raises(RecordError, match="checksum"):
        parse_line(SAMPLE.to_line().replace('"work":4', '"work":8'))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task", None), ("threads", "1"), ("threads", True), ("template", {"a": 1}), ("status", []),
        ("config", [1]), ("config", {"work": None}), ("baseline", [1]), ("baseline", float("nan")),
        ("seconds", 1.0), ("seconds", {"median": "x", "min": 1.0, "spread": 0.0, "runs": 1}),
        ("seconds", {"median": 1.0}), ("seconds", None), ("check", {}), ("versions", {"a": 1}),
    ],
)  # fmt: skip
def test_a_field_of_another_type_is_refused(field: str, value: object) -> None:
    """Also when the checksum is right: a program may have written it."""
    content = {**json.loads(SAMPLE.to_line()), field: value}
    del content["checksum"]
    line = json.dumps({**content, "checksum": records_checksum(content)})
    with pytest.raises(RecordError, match="not a complete tuning record"):
        parse_line(line)


def records_checksum(content: dict[str, object]) -> str:
    """As docs/log-format.md states it."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return f"{zlib.crc32(canonical.encode()):08x}"


def test_bad_lines_are_counted_with_their_numbers(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    good = SAMPLE.to_line()
    log.write_text("\n".join([good, "{broken", good, "", '{"schema": 99}', "[1]"]) + "\n")
    contents = read_log(log)
    assert len(contents.records) == 2
    assert [(p.line, p.newer) for p in contents.problems] == [(2, False), (5, True), (6, False)]
    assert "schema 99 is newer" in str(contents.problems[1])


def test_a_cut_off_last_line_costs_no_other_record(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(SAMPLE.to_line() + "\n" + SAMPLE.to_line()[:50])
    with LogWriter(log) as writer:
        writer.append(record(3e-6))
    contents = read_log(log)
    assert [r.median for r in contents.records] == [2e-6, 3e-6]
    assert [p.line for p in contents.problems] == [2]


def test_a_file_without_any_record_is_not_a_log(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(bytes(range(256)))
    with pytest.raises(RecordError, match="is it a tuning log"):
        read_log(file).require_log()


def test_a_log_of_a_newer_schema_says_so(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text('{"schema": 2}\n')
    with pytest.raises(RecordError, match="upgrade tcomp"):
        read_log(file).require_log()


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"missing\.jsonl"):
        read_log(tmp_path / "missing.jsonl")
    with pytest.raises(RecordError, match="cannot write log"):
        LogWriter(tmp_path / "no" / "log.jsonl")
    with pytest.raises(RecordError, match="cannot write log"):
        LogWriter(tmp_path)


def test_a_full_disk_is_reported() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    with LogWriter("/dev/full") as writer, pytest.raises(RecordError, match="No space left"):
        writer.append(SAMPLE)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into read-only folders")
def test_a_read_only_folder_is_reported(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RecordError, match="Permission denied"):
        LogWriter(tmp_path / "log.jsonl")


def test_rewriting_leaves_the_old_log_when_it_fails(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    write_log(log, [SAMPLE])

    def fails() -> object:
        yield SAMPLE
        raise OSError(28, "No space left on device")

    with pytest.raises(RecordError, match="No space left"):
        write_log(log, fails())  # type: ignore[arg-type]
    assert read_log(log).records == (SAMPLE,)
    assert [p.name for p in tmp_path.iterdir()] == ["log.jsonl"]


def test_concatenated_logs_hold_every_record_once() -> None:
    assert list(distinct([SAMPLE, record(3e-6), SAMPLE])) == [SAMPLE, record(3e-6)]


def test_killing_the_writer_loses_no_finished_record(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    code = (
        "import os, sys; from record_samples import SAMPLE; from tcomp.tuner.records import LogWriter\n"
        "w = LogWriter(sys.argv[1])\n"
        "for _ in range(50): w.append(SAMPLE)\n"
        "os.kill(os.getpid(), 9)"
    )
    process = subprocess.run([sys.executable, "-c", code, str(log)], cwd=Path(__file__).parent, check=False)
    assert process.returncode == -9
    assert len(read_log(log).records) == 50
