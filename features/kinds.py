"""Session kinds: a small mixture over what sessions hold, fitted on the baseline window, frozen per cycle.

A session's vector is its events per stream, the bin of log n and the bin of log dwell per event; log duration is
the sum of the two. Conversion streams are left out: what is grouped here never reads a label (docs/method.md
A.2.6, E23). Plain NumPy.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dynamix.config import Config
from dynamix.contracts import DWELL_BIN_EDGES_S
from dynamix.declarations import OPEN
from dynamix.features.timeline import codes

K_MAX = 6
MIN_SHARE = 0.01
"""A number of kinds whose rarest is below this is not considered."""
MIN_SESSIONS = 200
"""Below it there is one kind."""
SIZE_BINS = 7
"""1, 2, 3-4, 5-8, 9-16, 17-32, more events."""
PACE_BINS = len(DWELL_BIN_EDGES_S) + 1
_PRIOR = 0.5  # Dirichlet a of every block, as in docs/method.md A.4.3
_CLOSE = 0.005
_STARTS, _SHORT, _LONG, _TOLERANCE = 3, 8, 60, 1e-6

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Vectors:
    """N sessions as x (N, S + 7 + 12): counts by stream, a mark in the bin of n, a mark in that of dwell per event.

    n (N,) counts all events that are no conversions, also of streams without a column. A session without a known
    dwell has no mark in the last block: it says nothing there.
    """

    x: Floats
    n: Ints


@dataclass(frozen=True)
class SessionKinds:
    """K kinds over S streams: log prior (K,) and log emissions (K, S + 7 + 12), each of the three blocks adding to 1.

    `bic` holds the criterion for 1, 2, … kinds as far as it fell, `sessions` the size of the sample, `conversions`
    the conversion types and the declared streams that consist of them.
    """

    names: tuple[str, ...]
    streams: tuple[str, ...]
    conversions: tuple[str, ...]
    log_prior: Floats
    log_emission: Floats
    baseline_version: str = ""
    bic: tuple[float, ...] = ()
    sessions: int = 0

    def scores(self, x: Floats) -> Floats:
        """Joint log density (N, K) up to what all kinds share."""
        return np.asarray(x @ self.log_emission.T + self.log_prior)

    def to_json(self) -> str:
        """Text from which `from_json` gives the same numbers to the last bit."""
        tree = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(self).items()}
        return json.dumps(tree, sort_keys=True, indent=1)

    @classmethod
    def from_json(cls, text: str) -> SessionKinds:
        tree = json.loads(text)
        arrays = {name: np.array(tree[name], np.float64) for name in ("log_prior", "log_emission")}
        texts = {name: tuple(tree[name]) for name in ("names", "streams", "conversions", "bic")}
        return cls(**{**tree, **arrays, **texts})


def conversion_names(config: Config) -> tuple[str, ...]:
    """Event types that are conversions, and declared streams that consist of them."""
    types = set(config.conversion_types)
    declared = [name for name in config.streams if set(config.declaration(name).events.event_types) & types]
    return (*config.conversion_types, *sorted(declared))


def fit_kinds(
    table: Any, *, conversions: Sequence[str], baseline_version: str, seed: int = 0
) -> SessionKinds | None:
    """Kinds of a sample of `ebf_session` rows (pyarrow.Table); None where no session holds more than conversions.

    Given its kind, a session's streams are multinomial and its two bins categorical. An EM runs from three seeded
    starts, the best one to the end, for K = 1, 2, … 6 as long as BIC = −2 ln L + (K (S + 16) + K − 1) ln N falls and
    the rarest kind has 1 %. The smallest K whose BIC is within .5 % of the least is taken; K = 1 below 200 sessions.
    The order of the rows does not matter. Source: docs/method.md A.2.6.
    """
    table = table.sort_by([("session_id", "ascending")])
    names = sorted(_stream_names(table) - _conversion_streams(table, conversions))
    vectors = _vectors(table, names, conversions)
    x = vectors.x[vectors.n > 0]
    if not len(x):
        return None
    rng = np.random.default_rng(seed)
    tried: list[SessionKinds] = []
    bic: list[float] = []
    for k in range(1, (K_MAX if len(x) >= MIN_SESSIONS else 1) + 1):
        fitted, loglik = _fit(x, k, names, rng)
        parameters = k - 1 + k * sum(stop - start - 1 for start, stop in _blocks(len(names)))
        value = -2 * loglik + parameters * math.log(len(x))
        if bic and (value >= bic[-1] or float(np.exp(fitted.log_prior).min()) < MIN_SHARE):
            break
        tried.append(fitted)
        bic.append(value)
    least = min(bic)
    best = next(
        kinds for kinds, value in zip(tried, bic, strict=True) if value <= least + _CLOSE * abs(least)
    )
    order = np.argsort(-best.log_prior, kind="stable")
    return replace(
        best, names=kind_names(best.log_emission[order], names, x), log_prior=best.log_prior[order],
        log_emission=best.log_emission[order], conversions=tuple(conversions), baseline_version=baseline_version,
        bic=tuple(bic), sessions=len(x),
    )  # fmt: skip


def kind_names(log_emission: Floats, streams: Sequence[str], x: Floats) -> tuple[str, ...]:
    """A word per kind: the event type of the stream that sets it apart most, `all` for one kind.

    That is the stream of the greatest share · ln(lift), lift being the share over that in all sessions: a rare
    stream names nothing, however great its lift. Kinds of one word, and a kind that would be called `open`, take
    the surface as well, and a number where even that is the same.
    """
    if len(log_emission) == 1:
        return ("all",)
    counts = x[:, : len(streams)].sum(axis=0)
    log_share = log_emission[:, : len(streams)]
    weighed = np.exp(log_share) * (log_share - np.log(np.maximum(counts / counts.sum(), 1e-12)))
    top = [streams[int(f)] for f in weighed.argmax(axis=1)]
    short = [_word(stream.rpartition("/")[2]) for stream in top]
    clashing = {word for word, n in Counter(short).items() if n > 1} | {OPEN}
    found: list[str] = []
    for stream, word in zip(top, short, strict=True):
        name = own = _word(stream) if word in clashing else word
        number = 2
        while name in found:
            name, number = f"{own}-{number}", number + 1
        found.append(name)
    return tuple(found)


def label_sessions(table: Any, kinds: SessionKinds) -> Any:
    """Kind of each `ebf_session` row as an Arrow string array; NULL where a session holds conversions only."""
    vectors = _vectors(table, kinds.streams, kinds.conversions)
    code = kinds.scores(vectors.x).argmax(axis=1)
    return pa.array(kinds.names, pa.string()).take(pa.array(code, mask=vectors.n == 0))


# ---------------------------------------------------------------- vectors


def _vectors(table: Any, names: Sequence[str], conversions: Sequence[str]) -> Vectors:
    apart = _conversion_streams(table, conversions)
    counts, n, _ = _spread(table.column("n_by_stream"), names, apart)
    _, dwell_ms, known = _spread(table.column("dwell_by_stream"), (), apart)
    size_bin = np.minimum(np.ceil(np.log2(np.maximum(n, 1))), SIZE_BINS - 1).astype(np.int64)
    pace_s = dwell_ms / np.maximum(n, 1) / 1000
    pace_bin = np.searchsorted(np.asarray(DWELL_BIN_EDGES_S), pace_s, side="left")
    x = np.hstack([counts, np.eye(SIZE_BINS)[size_bin], np.eye(PACE_BINS)[pace_bin] * known[:, None]])
    return Vectors(x, n)


def _spread(column: Any, names: Sequence[str], apart: set[str]) -> tuple[Floats, Ints, npt.NDArray[np.bool_]]:
    """Values (N, S) of the named streams, their sum (N,) over all but those in `apart`, and where there are any."""
    column = column.combine_chunks()
    rows = len(column)
    offsets = np.asarray(column.offsets).astype(np.int64)
    start, length = int(offsets[0]), int(offsets[-1] - offsets[0])
    row = np.repeat(np.arange(rows, dtype=np.int64), np.diff(offsets))
    code, distinct = codes(column.keys.slice(start, length))
    listed = [str(key) for key in distinct.to_pylist()]
    place = {name: i for i, name in enumerate(names)}
    # one more entry, so that no stream at all is no special case
    target = np.array([*(place.get(key, -1) for key in listed), -1], np.int64)[code]
    inside = np.array([*(key not in apart for key in listed), False], bool)[code]
    values = np.asarray(column.items.slice(start, length)).astype(np.int64)
    total = np.zeros(rows, np.int64)
    np.add.at(total, row[inside], values[inside])
    table = np.zeros((rows, len(names)))
    take = inside & (target >= 0)
    table[row[take], target[take]] = values[take]
    return table, total, np.bincount(row[inside], minlength=rows) > 0


def _stream_names(table: Any) -> set[str]:
    return {str(key) for key in table.column("n_by_stream").combine_chunks().keys.unique().to_pylist()}


def _conversion_streams(table: Any, conversions: Sequence[str]) -> set[str]:
    return {
        name for name in _stream_names(table) if name in conversions or name.rpartition("/")[2] in conversions
    }


# ---------------------------------------------------------------- EM


def _blocks(n_streams: int) -> Iterator[tuple[int, int]]:
    """Columns [start, stop) of the three blocks; each is a distribution of its own."""
    start = 0
    for width in (n_streams, SIZE_BINS, PACE_BINS):
        yield start, start + width
        start += width


def _fit(x: Floats, k: int, streams: Sequence[str], rng: np.random.Generator) -> tuple[SessionKinds, float]:
    """Best of the seeded starts after a few rounds, then to the end: kinds and log likelihood."""
    starts = [_em(_m_step(x, _start(x, k, rng), streams), x, _SHORT) for _ in range(_STARTS if k > 1 else 1)]
    return _em(max(starts, key=lambda found: found[1])[0], x, _LONG)


def _em(kinds: SessionKinds, x: Floats, rounds: int) -> tuple[SessionKinds, float]:
    """At most `rounds` rounds, fewer where the likelihood stands still: kinds and the likelihood of them."""
    last = -math.inf
    for _ in range(rounds):
        scores = kinds.scores(x)
        peak = scores.max(axis=1, keepdims=True)
        weight = np.exp(scores - peak)
        total = weight.sum(axis=1, keepdims=True)
        loglik = float((peak + np.log(total)).sum())
        if loglik - last <= _TOLERANCE * abs(loglik):
            break
        last = loglik
        kinds = _m_step(x, weight / total, kinds.streams)
    return kinds, max(loglik, last)


def _start(x: Floats, k: int, rng: np.random.Generator) -> Floats:
    """Hard assignment (N, K) to k sessions drawn far apart by the roots of their shares."""
    width = x.shape[1] - SIZE_BINS - PACE_BINS
    points = np.sqrt(x[:, :width] / np.maximum(x[:, :width].sum(axis=1, keepdims=True), 1.0))
    away = np.full((len(x), k), np.inf)
    for i in range(k):
        near = away.min(axis=1)
        p = near / near.sum() if i and near.sum() > 0 else None
        away[:, i] = ((points - points[int(rng.choice(len(points), p=p))]) ** 2).sum(axis=1)
    return np.asarray(np.eye(k)[away.argmin(axis=1)], np.float64)


def _m_step(x: Floats, weight: Floats, streams: Sequence[str]) -> SessionKinds:
    """Kinds that maximise the penalised expected log likelihood, weight (N, K) being the posterior."""
    cells = weight.T @ x + _PRIOR
    blocks = [cells[:, a:b] / cells[:, a:b].sum(axis=1, keepdims=True) for a, b in _blocks(len(streams))]
    prior = weight.sum(axis=0) + 1.0
    return SessionKinds((), tuple(streams), (), np.log(prior / prior.sum()), np.log(np.hstack(blocks)))


def _word(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "kind"
