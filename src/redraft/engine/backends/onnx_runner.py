"""One run of a session: where its rows stand, what they hold, and whose logits come back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import onnxruntime

from redraft.denoiser.config import DenoiserConfig
from redraft.engine.backend import Pass, PassResult
from redraft.engine.backends.onnx_cache import CacheView, OnnxContext
from redraft.engine.backends.onnx_inputs import EARLY, EARLY_ROWS, LATE_ROWS, cache_names, of_group
from redraft.engine.backends.onnx_rows import (
    EarlyFrame,
    Frame,
    Group,
    RotaryTable,
    Share,
    Wanted,
    early,
    expectations,
    frame,
    wanted_rows,
    write_mask,
    write_tokens,
)
from redraft.engine.backends.onnx_session import Inputs
from redraft.errors import RedraftError

SOME_ROW = np.zeros(1, np.int64)
NO_LOGITS = np.empty((1, 0, 0), np.float32)
NO_ROWS_EARLY = EarlyFrame(SOME_ROW[:0], (), (), ())


class Runner:
    """A session, what is bound to it, and which calls the bound arrays were written for. least_rows: columns of a grid
    at least. The session's graph has as many groups of lanes as `prepare` is given views."""

    def __init__(
        self,
        session: Any,
        names: frozenset[str],
        config: DenoiserConfig,
        rotary: RotaryTable,
        least_rows: int,
    ) -> None:
        self.session, self.binding = session, session.io_binding()
        self.config, self.rotary, self.least_rows = config, rotary, least_rows
        self.inputs = Inputs(self.binding, names)
        self.gated, self.entering = "canvas" in names, EARLY_ROWS in names
        self._views: dict[int, Any] = {}
        self._frames: list[Frame] = []
        self._frames_key: Any = None
        self._places_key: Any = None
        self._wanted_key: Any = None
        self._wanted: list[Wanted] = []
        self._counts: list[int] = []
        self._total = 0
        self._canvas = np.zeros(0, bool)  # of all rows, which are canvas rows
        self._groups: tuple[Group, ...] = ()
        self._early = NO_ROWS_EARLY
        self._early_key: Any = None
        self._logits = NO_LOGITS
        self._prepared: tuple[Sequence[int], Sequence[Pass], Sequence[OnnxContext]] = ([], [], [])

    def prepare(
        self, passes: Sequence[Pass], contexts: Sequence[OnnxContext], views: Sequence[CacheView]
    ) -> None:
        """Writes what the session reads for these passes; each context's lane lies in one of the views."""
        order, shares = _seated(passes, contexts, views)
        ordered = passes if len(passes) == 1 else [passes[i] for i in order]
        self._bind(views)
        self._write_frames(shares, views)
        if self.entering:
            self._write_early_frames(passes)
        self._write_places(shares, views)
        self._write_rows(ordered)
        self._write_wanted(ordered)
        self._logits = np.empty((1, max(1, sum(self._counts)), self.config.vocab_size), np.float32)
        shape, where = self._logits.shape, self._logits.ctypes.data
        self.binding.bind_output("logits", "cpu", 0, np.float32, shape, where)
        self._prepared = order, passes, contexts

    def execute(self) -> None:
        """Runs the session on what has been prepared, without Python's lock. Raises RedraftError when it fails."""
        try:
            self.session.run_with_iobinding(self.binding)
        except Exception as error:  # onnxruntime's own classes share no base
            raise RedraftError(f"onnxruntime failed in a pass of {self._total} rows: {error}") from None

    def collect(self) -> list[PassResult]:
        """The results of the passes that were prepared, whose contexts grow by what they encoded."""
        order, passes, contexts = self._prepared
        logits, self._logits, self._prepared = self._logits, NO_LOGITS, ([], [], [])
        results: list[Any] = [None] * len(passes)
        at = 0
        for i, wanted, count in zip(order, self._wanted, self._counts, strict=True):
            results[i] = _result(logits[0, at : at + count], wanted, contexts[i])
            contexts[i].extend(len(passes[i].encode))
            at += count
        return results

    def _bind(self, views: Sequence[CacheView]) -> None:
        """Caches as inputs and, at the same addresses, as outputs; done again only where they moved."""
        for group, view in enumerate(views):
            key = view.key()
            if self._views.get(group) == key:
                continue
            for name, array in zip(cache_names(self.config, group), view.arrays(), strict=True):
                value = onnxruntime.OrtValue.ortvalue_from_numpy(array)  # the same memory
                self.binding.bind_ortvalue_input(name, value)
                self.binding.bind_ortvalue_output(f"{name}.next", value)
            self._views[group] = key

    def _write_frames(self, shares: tuple[tuple[Share, ...], ...], views: Sequence[CacheView]) -> None:
        """Index arrays that last as long as requests bring as many rows as before."""
        key: list[Any] = [
            (view.lanes, *[s[:3] for s in own]) for view, own in zip(views, shares, strict=True)
        ]
        if self._frames_key == key:
            return
        self._frames_key = self._places_key = self._wanted_key = None
        sizes = [sum(s.rows for s in own) for own in shares]
        before = accumulate(sizes, initial=0)
        groups = tuple([(tuple(rows), n, next(before), self.least_rows) for n, *rows in key])
        self._frames = [frame(*group) for group in groups]
        self._total = sum(sizes)
        alone = len(shares) == len(shares[0]) == 1
        self.inputs.write("turn", (self._frames[0].columns if alone else np.arange(self._total))[None])
        if len(views) > 1:
            self.inputs.write("sizes", np.array(sizes))
        for group, made in enumerate(self._frames):
            self.inputs.write(of_group("grid", group), made.grid)
            self.inputs.write(of_group("place", group), made.place)
        if self.gated:
            self._canvas = np.concatenate([made.role for made in self._frames]) == 1
            self.inputs.write("canvas", _in_list(np.flatnonzero(self._canvas)))
        self._groups, self._frames_key = groups, key

    def _write_early_frames(self, passes: Sequence[Pass]) -> None:
        """The same for layers before open slots enter: without canvas rows, unless one of these holds a token."""
        everything = any(self._holds_tokens(p.canvas) for p in passes)
        key = self._frames_key, everything
        if self._early_key == key:
            return
        self._early_key = self._places_key = None
        inputs, self._early = self.inputs, early(self._groups, everything)
        rows = self._early.rows
        inputs.write(EARLY_ROWS, _in_list(rows))
        inputs.write(f"{EARLY}turn", inputs.array("turn", (1, self._total), np.int64)[:, rows])
        if len(self._groups) > 1:
            inputs.write(f"{EARLY}sizes", np.array([len(own) for own in self._early.columns]))
        for group, (grid, place) in enumerate(zip(self._early.grids, self._early.places, strict=True)):
            inputs.write(of_group(f"{EARLY}grid", group), grid)
            inputs.write(of_group(f"{EARLY}place", group), place)
        self._early_key = key

    def _holds_tokens(self, canvas: np.ndarray | None) -> bool:
        return canvas is not None and not self._enter_late(canvas).all()

    def _enter_late(self, tokens: np.ndarray) -> np.ndarray:
        """Which of these slots are open or empty: bool."""
        late: np.ndarray = (tokens == self.config.mask_token_id) | (tokens == self.config.null_token_id)
        return late

    def _write_places(self, shares: tuple[tuple[Share, ...], ...], views: Sequence[CacheView]) -> None:
        """Positions and masks: unchanged from one step to the next on the same canvas."""
        key = shares, [view.rows for view in views]
        if self._places_key == key:
            return
        self._places_key = None
        inputs, positions = self.inputs, []
        for group, (own, view, made) in enumerate(zip(shares, views, self._frames, strict=True)):
            lengths: Any = own[0].length
            if len(own) > 1:
                lengths = np.array([s.length for s in own])[made.owner]
            slot = inputs.array(of_group("slot", group), made.place.shape, np.int64)[0]
            slot[:, 0], position = made.place[0, :, 0], slot[:, 1]
            np.add(made.columns, lengths, out=position)
            positions.append(_in_text(position, own, made))
            shape = (view.lanes, 1, made.grid.shape[1], view.rows)
            mask = inputs.array(of_group("mask", group), shape, np.float32)
            write_mask(self.config, own, mask)
            if self.entering:
                inputs.write(of_group(f"{EARLY}slot", group), slot[self._early.columns[group]][None])
        where = positions[0] if len(positions) == 1 else np.concatenate(positions)
        self.rotary.write(where, inputs.array, max(view.rows for view in views))
        self._places_key = key

    def _write_rows(self, passes: Sequence[Pass]) -> None:
        """What each row holds."""
        inputs, shape = self.inputs, (1, self._total)
        tokens, role = inputs.array("tokens", shape, np.int64), inputs.array("role", shape, np.int64)
        write_tokens(passes, self._frames, tokens[0], role[0])
        if self.entering:
            self.inputs.write(LATE_ROWS, _in_list(np.flatnonzero(self._canvas & self._enter_late(tokens[0]))))
        if self.config.self_conditioning:
            expected, row_of = expectations(passes, self.config.vocab_size)
            inputs.write("expected", expected)
            inputs.write("expected_row", row_of[None])

    def _write_wanted(self, passes: Sequence[Pass]) -> None:
        """Which rows' logits are wanted; steps that only encode want the same again and again. When nobody wants any,
        one row is asked for: onnxruntime 1.30 still fails at products of no rows."""
        key = [p.encode_logits if p.canvas is None else None for p in passes]
        if None not in key and self._wanted_key == key:
            return
        self._wanted_key = None
        self._wanted = [wanted_rows(p, self.config.shift) for p in passes]
        own = [w.rows() for w in self._wanted]
        self._counts = [len(rows) for rows in own]
        if not max(self._counts):
            own[0] = SOME_ROW
        at = before = 0
        parts = []
        for group, made in enumerate(self._frames):
            count = len(made.first)
            rows = own[0]
            if len(passes) > 1:
                rows = np.concatenate(own[at : at + count])
                rows = rows + np.repeat(made.first, [len(r) for r in own[at : at + count]])
            place = self.inputs.array(of_group("wanted_place", group), (1, len(rows), 2), np.int64)
            made.place.take(rows, axis=1, out=place)
            parts.append(rows + before if before else rows)
            at, before = at + count, before + len(made.columns)
        wanted = parts[0] if len(parts) == 1 else np.concatenate(parts)
        self.inputs.write("wanted", wanted)
        if self.gated:
            self.inputs.write("wanted_canvas", _in_list(np.flatnonzero(self._canvas[wanted])))
        self._wanted_key = key


def _in_text(places: np.ndarray, shares: tuple[Share, ...], made: Frame) -> np.ndarray:
    """Positions in the text of rows at these places of their caches, int64 [N]: the same but for branches, whose
    canvases lie one behind the other there."""
    if not any(share.branches for share in shares):
        return places
    places = places.copy()
    for share, first in zip(shares, made.first, strict=True):
        if share.branches:
            each = share.canvas // len(share.branches)
            where = np.array(share.branches)[:, None] + np.arange(each)
            at = first + share.encode
            places[at : at + share.canvas] = share.length + where.reshape(-1)
    return places


def _in_list(rows: np.ndarray) -> np.ndarray:
    """int64 [A] to int64 [1, A, 2]: (0, row) of each row."""
    out = np.zeros((1, len(rows), 2), np.int64)
    out[0, :, 1] = rows
    return out


def _seated(
    passes: Sequence[Pass], contexts: Sequence[OnnxContext], views: Sequence[CacheView]
) -> tuple[list[int], tuple[tuple[Share, ...], ...]]:
    """The order of the rows, as numbers of passes: view by view, lane by lane. And their shares of each view."""
    if len(passes) == 1:
        return [0], ((_share(passes[0], contexts[0], views[0].first),),)
    views_of = {id(view.arena): at for at, view in enumerate(views)}
    seats = [(views_of[id(c.arena)], c.lane) for c in contexts]
    order = sorted(range(len(passes)), key=seats.__getitem__)
    shares: list[tuple[Share, ...]] = []
    for view in views:
        own = [i for i in order if contexts[i].arena is view.arena]
        shares.append(tuple([_share(passes[i], contexts[i], view.first) for i in own]))
    return order, tuple(shares)


def _share(p: Pass, context: OnnxContext, first: int) -> Share:
    return Share(context.lane - first, len(p.encode), p.slots, context.length, p.branches or ())


def _result(logits: np.ndarray, wanted: Wanted, context: OnnxContext) -> PassResult:
    """Sorts one pass's logits [rows, V] out, and lets the context remember its last clean row's."""
    encoded = len(wanted.encode)
    canvas = None
    if wanted.canvas is not None:
        canvas = logits[encoded : encoded + len(wanted.canvas)]
        if wanted.remembered is not None and wanted.remembered.any():
            if context.last_logits is None:
                raise RedraftError(
                    "a shifted canvas needs the last clean row: encode a token after truncating"
                )
            canvas[wanted.remembered] = context.last_logits
    if wanted.last is not None:
        context.last_logits = logits[wanted.last].copy()
    return PassResult(logits[:encoded], canvas)
