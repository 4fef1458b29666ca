"""Options of Beam's file systems: those of the job, wherever it runs."""

import pytest
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.value_provider import RuntimeValueProvider

from pipelines.corpus.files import exists


@pytest.mark.parametrize("at_run_time", [None, {"s3_region_name": "eu-west-1"}])
def test_options_of_a_beam_worker_are_not_hidden(
    at_run_time: dict[str, str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileSystems, "_pipeline_options", None)
    monkeypatch.setattr(RuntimeValueProvider, "runtime_options", at_run_time)
    with pytest.raises(ValueError, match="no-such-scheme"):
        exists("no-such-scheme://bucket/file")
    assert (FileSystems._pipeline_options is None) == (at_run_time is not None)
