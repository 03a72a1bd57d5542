from __future__ import annotations

from pathlib import Path

from benchmarks.serving import frame, histories, preparation, service, timings
from dynamix.models.bundle import Origin, bundle_text
from dynamix.models.mask_reader import MaskBundle
from dynamix.models.service import request_table
from dynamix.models.serving import apply


def test_reader_and_pyfunc_are_timed_on_the_same_work(tmp_path: Path) -> None:
    own, asked = preparation(), histories(12, 80)
    bundle = MaskBundle(bundle_text(own, Origin("m", "published", "", "")))
    found, reader = apply(request_table(frame(asked)), own), [bundle.apply(**one) for one in asked]
    assert found.kept.row.tolist() == [i for i, one in enumerate(reader) for _ in one.kept]
    assert found.kept.place.tolist() == [place for one in reader for place in one.kept]
    assert found.segment.tolist() == [one.segment_id for one in reader]
    assert 200 < len(found.kept.row) < 12 * 80 and len(set(found.segment.tolist())) > 1
    served = service(tmp_path)
    lines = {timing.what: timing for timing in timings(served, served, events=20, scale=0.01)}
    assert all((timing.seconds > 0).all() for timing in lines.values())
    assert {"mask bundle's reader, one row", "pyfunc, one row", "pyfunc, batch"} <= set(lines)
