"""AMX without AMX: its kernels on a model of the tiles, and the assembly of the real ones."""

from __future__ import annotations

import ctypes
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from sparsefx.backends.cpu.codegen.engine import Engine, assembly
from sparsefx.backends.cpu.codegen.epilogue import Epilogue
from sparsefx.backends.cpu.codegen.ir import Function
from sparsefx.backends.cpu.codegen.vmath import ACTIVATIONS
from sparsefx.backends.cpu.kernels import dense_amx, masked_amx, peak
from sparsefx.backends.cpu.kernels.amx_tiles import ModelTiles, full_tiles
from sparsefx.backends.cpu.lowering.costs import choose_format
from sparsefx.backends.cpu.machine.isa import ISAS
from sparsefx.backends.cpu.measure import rates
from sparsefx.backends.cpu.measure.amx_check import embed, linear_input, run_steps
from sparsefx.backends.cpu.plan import catalog
from sparsefx.backends.cpu.plan.plan import Buffer, Step, Word
from sparsefx.backends.cpu.plan.weights import Format, pack
from sparsefx.backends.cpu.target import CpuTarget
from sparsefx.backends.formats.amx_tiles import pack_amx_tiles, pack_masked_tiles
from tests.backends.cpu_cases import EMULATED, engine, padded_batch, pool, quantized, sparse_
from tests.programs import captured

TILED: list[Format] = ["dense_amx", "masked_amx"]
emulated = pytest.mark.skipif(not EMULATED, reason="this machine has no vpexpandb")


# -- the model of the tiles ------------------------------------------------------------------------


def configuration(shapes: dict[int, tuple[int, int]]) -> NDArray[np.uint8]:
    """64 bytes that give tiles their rows and bytes per row."""
    config = np.zeros(64, np.uint8)
    config[0] = 1
    for tile, (rows, row_bytes) in shapes.items():
        config[16 + 2 * tile], config[48 + tile] = row_bytes, rows
    return config


def emit_product(tiles_of: Callable[[Function], ModelTiles]) -> Function:
    """C = A x B on tiles 0 = 1 x 2; the words are addresses of the configuration, A, B, C."""
    f = Function("product", ("words",))
    tiles = tiles_of(f)
    config, a, b, c = (f.index("ptr", f.argument("words"), n) for n in range(4))
    tiles.configure(config)
    tiles.zero(0)
    tiles.load(1, a, f.i64(64))
    tiles.load(2, b, f.i64(128))
    tiles.dot(0, 1, 2)
    tiles.dot(0, 1, 2)
    tiles.store(0, c, f.i64(64))
    tiles.release()
    return f


@emulated
@pytest.mark.parametrize(("m", "k", "n"), [(16, 16, 16), (1, 1, 1), (5, 3, 11), (16, 7, 2)])
def test_the_model_follows_the_manual(m: int, k: int, n: int) -> None:
    rng = np.random.default_rng(m)
    a = rng.integers(-128, 128, (16, 64)).astype(np.int8)
    b = rng.integers(0, 256, (16, 128)).astype(np.uint8)
    c = np.full((16, 16), 77, np.int32)
    config = configuration({0: (m, 4 * n), 1: (m, 4 * k), 2: (k, 4 * n)})
    words = np.array([array.ctypes.data for array in (config, a, b, c)], np.int64)
    text = emit_product(ModelTiles).text()
    address = Engine(ISAS["amx_emulated"], None).address("product", text)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)(words.ctypes.data)
    left = a[:m, : 4 * k].reshape(m, k, 4).astype(np.int64)
    right = b[:k, : 4 * n].reshape(k, n, 4).astype(np.int64)
    expected = np.full((16, 16), 77)
    expected[:m, :n] = 2 * np.einsum("mkb,knb->mn", left, right)
    np.testing.assert_array_equal(c, expected)


CHILD = """
import ctypes, sys
import numpy as np
from sparsefx.backends.cpu.codegen.engine import Engine
from sparsefx.backends.cpu.machine.isa import ISAS
config = np.frombuffer(bytes.fromhex(sys.argv[1]), np.uint8)
arrays = [config, *(np.zeros(4096, np.uint8) for _ in range(3))]
words = np.array([array.ctypes.data for array in arrays], np.int64)
address = Engine(ISAS["amx_emulated"], None).address("product", sys.stdin.read())
ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)(words.ctypes.data)
"""


def end_of(config: NDArray[np.uint8]) -> int:
    """Exit code of a process that multiplies with a configuration on the model."""
    ended = subprocess.run(
        [sys.executable, "-c", CHILD, config.tobytes().hex()],
        input=emit_product(ModelTiles).text(),
        text=True,
        capture_output=True,
        check=False,
    )
    return ended.returncode


@emulated
@pytest.mark.parametrize(("rows", "code"), [(4, 0), (3, -signal.SIGILL), (0, -signal.SIGILL)])
def test_the_model_dies_where_the_processor_does(rows: int, code: int) -> None:
    assert end_of(configuration({0: (4, 16), 1: (4, 16), 2: (rows, 16)})) == code


@emulated
@pytest.mark.parametrize(
    ("place", "value"),
    [(0, 2), (1, 1), (15, 1), (32, 1), (63, 1), (55, 4), (30, 16)],
    ids=["palette", "start", "15", "32", "63", "rows", "columns"],
)
def test_the_model_takes_no_other_configuration(place: int, value: int) -> None:
    config = configuration({0: (4, 16), 1: (4, 16), 2: (4, 16)})
    config[place] = value
    assert end_of(config) == -signal.SIGILL


# -- kernels on the model --------------------------------------------------------------------------


def outputs(
    format: Format, epilogue: Epilogue, x: NDArray[np.int64], w: NDArray[np.int8]
) -> dict[str, NDArray[np.float32]]:
    """What a linear writes as fp32 and as bytes, each [tokens, rows]."""
    rng = np.random.default_rng(1)
    name, tokens, rows = EMULATED[0], len(x), len(w)
    steps, source = linear_input(x, 7, format, ISAS[name])
    rest, wide, narrow = Buffer("r", rows, 4), Buffer("floats", rows, 4), Buffer("b", rows, 1)
    steps.append(embed(rng.standard_normal((tokens, rows)), rest))
    snap = np.tile(np.array((20.0, 0.05, -120, 135), np.float32), (rows, 1))
    snap[::3, 0] = 0 if epilogue.snap else 20
    words: dict[str, Word] = {
        **pack(w, format, 7).words,
        "rows": rows,
        "input": source,
        "residual": rest,
        "scale": rng.uniform(1e-4, 3e-4, rows).astype(np.float32),
        "bias": rng.standard_normal(rows).astype(np.float32),
        "inverse_scale": 30.0,
        "zero_point": 120,
        "snap": snap,
        "table": rng.integers(0, 256, 256).astype(np.uint8),
        "output": wide,
        "output_bytes": narrow,
    }
    steps.append(Step(catalog.linear(format, epilogue), words, "y"))
    found = [wide] if epilogue.floats else []
    if epilogue.octets:
        found.append(Buffer("octets", rows, 4))
        words = {"rows": rows, "input": narrow, "output": found[-1], "scale": 1.0}
        steps.append(Step(catalog.other("expand"), words, "octets"))
    return run_steps(steps, found, np.ones((1, tokens), np.bool_), engine(name), pool(name, 2))


EPILOGUES = [
    *(Epilogue(True, activation) for activation in ("", *ACTIVATIONS)),
    Epilogue(True, residual=True),
    Epilogue(True, octets=True),
    Epilogue(True, floats=False, octets=True),
    Epilogue(True, snap=True, residual=True, octets=True),
    Epilogue(True, floats=False, octets=True, table=True),
    Epilogue(True, floats=False, octets=True, codes=True),
]


@emulated
@pytest.mark.parametrize("format", TILED)
@pytest.mark.parametrize("epilogue", EPILOGUES, ids=lambda e: e.symbol)
def test_every_epilogue_gives_the_bits_of_quads(format: Format, epilogue: Epilogue) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (130, 70))
    w = rng.integers(-128, 128, (45, 70)) * (rng.random((45, 70)) < 0.3)
    found = outputs(format, epilogue, x, w.astype(np.int8))
    expected = outputs("quads", epilogue, x, w.astype(np.int8))
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert np.ptp(values) > 0.9  # a sigmoid gives at most 1
        np.testing.assert_array_equal(found[name], values)


@emulated
@pytest.mark.parametrize("format", TILED)
def test_models_have_the_bits_of_avx512_vnni(format: Format) -> None:
    program = sparse_(captured("bert-cls"), 0.2)
    program = quantized(program, padded_batch(program, 4, 32))
    plain = CpuTarget(isa="avx512_vnni", rates="built-in", threads=2).lower(program)
    tiled = CpuTarget(isa="amx_emulated", format=format, threads=2).lower(program)
    assert tiled.listing().count(format) > 8
    for rows, length in ((1, 5), (2, 40), (3, 70)):
        batch = padded_batch(program, rows, length)
        np.testing.assert_array_equal(tiled(**batch)["logits"], plain(**batch)["logits"])


@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (33, 64), (70, 130)])
def test_masked_tiles_hold_the_matrix(shape: tuple[int, int], density: float) -> None:
    rng = np.random.default_rng(0)
    matrix = (rng.integers(-128, 128, shape) * (rng.random(shape) < density)).astype(np.int8)
    dense, masked = pack_amx_tiles(matrix), pack_masked_tiles(matrix)
    np.testing.assert_array_equal(masked.tiles(), dense)
    rows, depth = dense.shape[:2]
    flat = dense.transpose(0, 2, 1, 3).reshape(16 * rows, 64 * depth)
    np.testing.assert_array_equal(flat[: shape[0], : shape[1]], matrix)
    assert not flat[shape[0] :].any()
    assert not flat[:, shape[1] :].any()


# -- the instructions ------------------------------------------------------------------------------

TILE_LINE = re.compile(r"\t(ldtilecfg|tile\w+|tdp\w+)\t?(.*)")


def tile_operations(text: str) -> str:
    """All instructions on tiles in the order of the assembly, with their tiles.

    Tiles of a product come as the assembler names them: activations or queries
    (unsigned), then the left side, then sums. A loop's end may stand before its begin.
    """
    found = (TILE_LINE.match(line.split("#")[0].rstrip()) for line in text.splitlines())
    tiles = [(match[1], re.findall(r"%tmm(\d)", match[2]), match[2]) for match in found if match]
    assert not any("rsp" in operands for *_, operands in tiles)
    return " ".join(f"{name}{''.join(numbers)}" for name, numbers, _ in tiles)


# Not one tile operation is there that was not asked for: none is spilled to the stack or copied.
NARROW = """
ldtilecfg tilestored0 tilestored1 tilezero0 tilezero1
tileloadd4 tileloadd6 tdpbsud640 tileloadd5 tdpbsud651 tilerelease
"""
WIDE = """
ldtilecfg tilestored0 tilestored1 tilestored2 tilestored3 tilezero0 tilezero1 tilezero2 tilezero3
tileloadd4 tileloadd6 tdpbsud640 tileloadd7 tdpbsud741 tileloadd5 tdpbsud652 tdpbsud753 tilerelease
"""


@pytest.mark.parametrize("width", [16, 32, 64])
@pytest.mark.parametrize("kernel", [dense_amx, masked_amx], ids=["dense", "masked"])
def test_instructions_of_the_kernels(kernel: object, width: int) -> None:
    assert kernel in (dense_amx, masked_amx)
    emit = dense_amx.emit if kernel is dense_amx else masked_amx.emit
    text = assembly(emit(ISAS["amx"], width, Epilogue(True, "gelu")).text(), ISAS["amx"])
    assert tile_operations(text).split() == (NARROW if width == 16 else WIDE).split()
    assert text.index("tilerelease") < text.index("retq")
    assert "callq" not in text
    expanded = 16 * (2 + (1 if width == 64 else 2))
    assert text.count("vpexpandb") == (expanded if kernel is masked_amx else 0)


def encoded(total: int, left: int, right: int) -> bytes:
    """A product by the manual: VEX.128.F3.0F38.W0 5E.

    Sums stand in ModRM.reg, the left side in ModRM.rm, the right in VEX.vvvv.
    """
    prefix = (~right & 15) << 3 | 2
    return bytes((0xC4, 0xE2, prefix, 0x5E, 0xC0 | total << 3 | left))


def test_products_are_encoded_as_in_the_manual() -> None:
    text = dense_amx.emit(ISAS["amx"], 64, Epilogue(True)).text()
    code = Engine(ISAS["amx"], None).object(text)[1]
    for tiles in ((0, 4, 6), (1, 4, 7), (2, 5, 6), (3, 5, 7)):
        assert code.count(encoded(*tiles)) == 1


def test_emulated_kernels_have_no_tiles() -> None:
    text = assembly(
        masked_amx.emit(ISAS["amx_emulated"], 64, Epilogue(True)).text(), ISAS["amx_emulated"]
    )
    assert tile_operations(text) == ""


def test_the_peak_is_four_sums_at_a_time() -> None:
    text = assembly(peak.emit(ISAS["amx"], 64, "tiles").text(), ISAS["amx"])
    assert tile_operations(text).count("tdpbsud") == peak.TILE_SUMS
    assert peak.products(ISAS["amx"], "tiles") == 4 * 16 * 16 * 64


def test_the_configuration_is_full() -> None:
    expected = configuration({tile: (16, 64) for tile in range(8)})
    assert full_tiles() == expected.tobytes()


# -- choice of formats -----------------------------------------------------------------------------


def sparse(density: float, rows: int, columns: int) -> NDArray[np.int8]:
    rng = np.random.default_rng(0)
    return (rng.random((rows, columns)) < density).astype(np.int8)


def test_every_format_has_its_place_on_amx() -> None:
    def chosen(matrix: NDArray[np.int8], found: rates.Rates = rates.BUILT_IN) -> str:
        return choose_format(matrix, ISAS["amx"], found).format

    assert chosen(sparse(1.0, 768, 768)) == "dense_amx"
    assert chosen(sparse(0.1, 768, 768)) == "masked_amx"
    assert chosen(sparse(0.02, 768, 768)) == "quads"
    assert chosen(np.repeat(sparse(0.05, 768, 192), 4, axis=1)) == "blocks"
    assert chosen(sparse(1.0, 2, 768)) == "blocks"
    slow = replace(rates.BUILT_IN, masked_tile=45.0)
    assert chosen(sparse(0.1, 768, 768), slow) == "dense_amx"
    choice = choose_format(sparse(0.1, 768, 768), ISAS["amx"])
    assert choice.reason == "1.1x cheaper than reading every weight; all are multiplied"
    choice = choose_format(sparse(0.1, 768, 768), ISAS["amx"], slow)
    assert choice.reason.startswith("zeros do not pay")
    assert "masked_amx" not in choose_format(sparse(0.9, 64, 768), ISAS["amx"]).costs


@emulated
def test_kernels_can_be_timed() -> None:
    for format in TILED:
        assert rates.linear_seconds(sparse(0.1, 32, 64), format, ISAS["amx_emulated"]) > 0
    assert rates._peak(ISAS["amx_emulated"], "tiles", rounds=1) > 0
