import itertools
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from banding_removal.errors import ConfigError
from banding_removal.model.varnet import VarNet
from benchmarks import graphs, plain
from benchmarks.operator_groups import (
    COILS,
    CONVOLUTION,
    COPIES,
    FOURIER,
    GROUPS,
    LEARNING,
    NORMS,
    OTHER,
    RESIZING,
    group_of,
    profiled,
    seconds_by_group,
)
from benchmarks.step import Benchmark, main, print_tables
from benchmarks.step_sizes import SIZES, make_batch
from benchmarks.step_variants import UnavailableError, prepare
from benchmarks.tests.formulations import CPU, NETWORK, batch_of_two, both_acts, both_formulations


def difference(value: Tensor, expected: Tensor) -> float:
    assert value.dtype == expected.dtype == torch.float64
    scale = expected.norm()  # 0 in the first cascade's data consistency: there x is k
    return float((value - expected).norm() / torch.where(scale > 0, scale, 1.0))


def biases_before_instance_norms(predictor: nn.Module) -> set[Tensor]:
    """Instance norm takes them away: their gradients are rounding."""
    blocks = [[*module] for module in predictor.modules() if isinstance(module, plain.ConvBlock)]
    convolutions = [layer for block in blocks for layer in block if isinstance(layer, nn.Conv2d)]
    return {layer.bias for layer in convolutions if layer.bias is not None}


@pytest.mark.parametrize(("height", "width"), [(32, 32), (37, 41), (48, 29)])
def test_the_plain_step_computes_what_the_projects_own_does(height: int, width: int) -> None:
    settings, players, own = both_formulations()
    assert players.adversary is not None and own.adversary is not None
    batch = batch_of_two(height, width)

    with torch.no_grad():
        image = players.predictor(batch.masked_kspace, batch.mask, batch.acs_lines)
        assert difference(own.reconstruct(batch), image) < 1e-10

    figures = both_acts(settings, players, batch)
    losses = plain.backward(own, batch)
    for name, loss in losses.items():
        assert float(loss) == pytest.approx(figures[name], rel=1e-10), name

    without_effect = biases_before_instance_norms(own.predictor)
    assert len(without_effect) == 3 * 2 * (2 * NETWORK["pools"] + 1)
    compared = 0
    for theirs, mine in (
        (players.predictor, own.predictor),
        (players.adversary, own.adversary),
    ):
        for weight, (name, plain_weight) in zip(
            theirs.parameters(), mine.named_parameters(), strict=True
        ):
            if plain_weight in without_effect:
                continue
            assert weight.grad is not None and plain_weight.grad is not None, name
            assert difference(plain_weight.grad, weight.grad) < 1e-9, name
            compared += 1
    assert compared > 60


def test_a_plain_step_in_float32_lowers_the_loss_of_both_players() -> None:
    batch = make_batch(SIZES["tiny"])
    torch.manual_seed(0)
    predictor = plain.PlainPredictor(cascades=1, chans=2, pools=2, sens_chans=2)
    players = plain.PlainPlayers.of(predictor, plain.ShallowAdversary(4))
    losses = [plain.train_step(players, batch) for _ in range(20)]
    assert losses[-1]["loss"] < losses[0]["loss"]
    assert losses[-1]["adversary_orientation"] < losses[0]["adversary_orientation"]


def test_weights_of_another_network_are_not_copied() -> None:
    with pytest.raises(AssertionError, match=r"\(4, 2\) is no \(2, 4\)"):
        plain.copy_weights(nn.Linear(2, 4), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("name", "dtypes", "shapes", "group"),
    [
        (
            "aten::convolution_backward",
            ["float"] * 3,
            [[1, 18, 64, 64], [18, 2, 3, 3]],
            CONVOLUTION,
        ),
        ("ConvolutionBackwardBackward0", [], [], CONVOLUTION),
        ("aten::conv2d", ["float"] * 2, [[1, 1, 64, 64], [1, 1, 7, 7]], LEARNING),
        ("aten::avg_pool2d", ["float"], [[1, 1, 320, 320]], LEARNING),
        ("aten::max_pool2d_with_indices", ["float"], [[1, 18, 64, 64]], RESIZING),
        ("aten::roll", ["c10::complex<float>"], [[1, 15, 64, 64]], FOURIER),
        ("aten::mul_", ["c10::complex<float>", "float"], [[1, 15, 64, 64], [1]], COILS),
        ("aten::mul", ["float", "float"], [[1, 15, 64, 64, 2], [64, 1]], COILS),
        ("aten::mul", ["float", "float"], [[1, 18, 64, 64], [1, 18, 1, 1]], NORMS),
        ("aten::mul", ["float", "float"], [[1, 1, 12, 4096], [1, 1, 12, 4096]], NORMS),
        ("aten::mul", ["float", "float"], [[1, 1, 64, 64], [1, 1, 64, 64]], LEARNING),
        ("aten::_foreach_norm", [], [], LEARNING),
        ("Optimizer.step#Adam.step", [], [], LEARNING),
        ("aten::constant_pad_nd", ["float"], [[1, 2, 37, 41]], COPIES),
        ("aten::view", ["float"], [[1, 2, 37, 41]], None),
        ("autograd::engine::evaluate_function: ConvolutionBackward0", [], [], None),
        ("NormAfterConvolutionBackward", [], [], None),  # a function of Python's
    ],
)
def test_operators_are_told_apart_by_name_dtype_and_shape(
    name: str, dtypes: list[str], shapes: list[list[int]], group: str | None
) -> None:
    assert group_of(name, dtypes, shapes) == group


def test_an_operators_own_time_goes_to_the_outermost_group_and_kernels_to_their_operator() -> None:
    def operator(name: str, start: float, length: float, number: int) -> dict[str, object]:
        event = {"cat": "cpu_op", "tid": 1, "name": name, "ts": start, "dur": length}
        return {**event, "args": {"External id": number, "Input Dims": [[1, 2, 8, 8]]}}

    events = [
        operator("autograd::engine::evaluate_function: ConvolutionBackward0", 0, 100, 1),
        operator("aten::convolution_backward", 10, 80, 2),
        operator("aten::copy_", 20, 30, 3),
        operator("aten::_to_copy", 60, 10, 4),
        operator("aten::cat", 200, 50, 5),
    ]
    seconds = seconds_by_group(events)
    assert seconds[CONVOLUTION] == pytest.approx(70e-6)  # with the copy that it needs
    assert seconds[COPIES] == pytest.approx(60e-6)  # a conversion of types is not its own
    assert seconds[OTHER] == pytest.approx(20e-6)
    kernel = {"cat": "kernel", "tid": 7, "name": "any", "ts": 500, "dur": 3}
    seconds = seconds_by_group([*events, {**kernel, "args": {"External id": 3}}])
    assert seconds[CONVOLUTION] == pytest.approx(3e-6)
    assert sum(seconds.values()) == pytest.approx(3e-6)


def test_a_step_is_profiled_by_group() -> None:
    layer = nn.Conv2d(2, 8, 3)
    optimizer = torch.optim.Adam(layer.parameters())

    def step() -> None:
        images = torch.fft.fftshift(torch.randn(1, 2, 64, 64, dtype=torch.complex64))
        layer((images * images.conj()).abs()).relu().sum().backward()
        optimizer.step()

    seconds = profiled(step, CPU)
    for group in (CONVOLUTION, FOURIER, COILS, NORMS, LEARNING):
        assert seconds[group] > 0, group


def test_the_benchmark_prints_its_table_and_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "step.jsonl"
    run: dict[str, Any] = {
        "size": "tiny",
        "device": "cpu",
        "threads": 1,
        "repeats": 1,
        "out": out,
        "steps": 1,
    }
    main(Benchmark(variants=("plain", "ours"), stages=("pretrain",), breakdown=False, **run))
    first = capsys.readouterr().out.splitlines()
    assert [line.split(" s")[0].rsplit(" ", 1)[0] for line in first[:2]] == [
        "timing 1: pretrain plain",
        "timing 1: pretrain ours",
    ]
    assert first[-2].split()[:2] == ["pretrain", "plain"]
    assert first[-1].split()[:2] == ["pretrain", "ours"]
    main(Benchmark(variants=("plain",), stages=("pretrain",), **run))
    again = capsys.readouterr().out.splitlines()
    assert again[0] == "breakdown 1: pretrain plain"  # the timing is there
    assert "convolution" in again[-2] and again[-1].count("%") == 8
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["timing", "timing", "breakdown"]
    assert rows[0]["parameters"] == rows[1]["parameters"]
    assert all(row["peak_mb"] > row["step_mb"] > 0 for row in rows[:2])


def test_a_step_of_our_recipe_has_the_direct_term() -> None:
    figures = prepare("ours-streaks", "adversarial", SIZES["tiny"], torch.device("cpu"))[0]()
    assert isinstance(figures, dict) and "streaks" in figures
    with pytest.raises(UnavailableError, match="stage 2 only"):
        prepare("ours-streaks", "pretrain", SIZES["tiny"], torch.device("cpu"))


@pytest.mark.parametrize("slices", [1, 2])
def test_plain_steps_compute_the_same_in_every_memory_layout(slices: int) -> None:
    losses = []
    for variant in ("plain", "plain-channels-last"):
        step, predictor = prepare(variant, "pretrain", SIZES["tiny"], CPU, slices)
        weights = [weight for weight in predictor.parameters() if weight.ndim == 4]
        assert all(weight.is_contiguous() for weight in weights) is (variant == "plain")
        found = step()
        assert isinstance(found, dict)
        losses.append(found["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert make_batch(SIZES["tiny"], slices).masked_kspace.shape[0] == slices


def test_pytorchs_layers_compute_what_our_fused_ones_do() -> None:
    metrics = []
    for variant in ("ours-bf16", "ours-bf16-plain-layers"):
        found = prepare(variant, "pretrain", SIZES["tiny"], CPU)[0]()
        assert isinstance(found, dict)
        metrics.append(found)
    assert metrics[0] != metrics[1]
    assert metrics[0] == pytest.approx(metrics[1], rel=0.05)


def test_what_is_compiled_are_the_u_nets(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(plain.UNet, "compile", lambda self, **_: compiled.append(self))
    _, predictor = prepare("plain-compile", "pretrain", SIZES["tiny"], CPU)
    assert isinstance(predictor, plain.PlainPredictor)
    assert compiled == [x.unet.unet for x in (predictor.sensitivity, *predictor.cascades)]


@pytest.mark.parametrize("stage", ["pretrain", "inference"])
@pytest.mark.parametrize(
    "variant", ["plain-bf16-graphs", "ours-graphs", "plain-bf16-compile-graphs"]
)
def test_graphs_say_that_they_need_a_gpu(variant: str, stage: str) -> None:
    with pytest.raises(UnavailableError, match="CUDA graphs need a GPU"):
        prepare(variant, stage, SIZES["tiny"], CPU)


def test_a_difference_of_two_acts_is_that_of_their_results_and_gradients() -> None:
    layer = nn.Linear(1, 1, bias=False)

    def act(factor: float, offset: float) -> dict[str, Tensor]:
        (factor * layer.weight.sum()).backward()
        return {"loss": torch.tensor(1.0 + offset)}

    for factor, offset, expected in ((1.0, 0.0, 0.0), (1.5, 0.0, 0.5), (1.0, 0.25, 0.25)):
        found = graphs.difference(lambda: act(1, 0), partial(act, factor, offset), [layer])
        assert found == pytest.approx(expected)
        assert layer.weight.grad is None


def test_a_graph_may_differ_as_much_as_two_runs_of_the_step_do() -> None:
    layer = nn.Linear(1, 1, bias=False)
    losses = itertools.cycle([1.0, 1.1])

    def act(value: float | None = None) -> dict[str, Tensor]:
        return {"loss": torch.tensor(value or next(losses))}

    found = graphs.compare(act, partial(act, 1.25), [layer], 0.01)
    assert found == pytest.approx({"graph_difference": 0.25, "own_difference": 0.1})
    next(losses)
    with pytest.raises(RuntimeError, match=r"from the step by 0\.35; the step from itself by 0\.1"):
        graphs.compare(act, partial(act, 1.35), [layer], 0.01)
    with pytest.raises(RuntimeError, match="by nan"):
        graphs.compare(act, partial(act, math.nan), [layer], 0.01)


@pytest.mark.parametrize(("variant", "convolution"), [("plain", "67%"), ("plain-graphs", "-")])
def test_a_gpu_is_as_busy_as_its_kernels_take_of_a_step(
    variant: str, convolution: str, capsys: pytest.CaptureFixture[str]
) -> None:
    common = {"size": "paper", "stage": "pretrain", "variant": variant, "device": "cuda"}
    common |= {"slices": "1", "machine": "a GPU", "threads": "1", "torch": "2"}
    sizes = {"parameters": 1, "step_mb": 1.0, "peak_mb": 1.0}
    timing = {**common, **sizes, "kind": "timing", "seconds": [2.0, 4.0, 4.0]}
    groups = dict.fromkeys(GROUPS, 0.0) | {CONVOLUTION: 2.0, OTHER: 1.0}
    print_tables([timing, {**common, "kind": "breakdown", "groups": groups}])
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("pretrain"))
    assert line.split()[-2:] == [convolution, "75%"]


def test_a_run_that_takes_too_long_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = Benchmark(size="tiny", variants=("plain",), stages=("pretrain",), limit=0.1)
    assert main(benchmark) == 1
    assert capsys.readouterr().out == "left out: pretrain plain: not done after 0.1 s (limit)\n"


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_a_gpu_whose_kernels_are_not_recorded_is_not_taken_for_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)  # there is no GPU here
    with pytest.raises(RuntimeError, match="recorded no kernel"):
        profiled(lambda: torch.ones(2) + 1, torch.device("cuda"))


def test_the_public_network_is_measured_with_our_code() -> None:
    step, predictor = prepare("varnet", "pretrain", SIZES["tiny"], torch.device("cpu"))
    assert isinstance(predictor, VarNet)
    assert isinstance(step(), dict)


def test_unknown_variants_are_refused() -> None:
    with pytest.raises(ConfigError, match="mine: none of plain, "):
        Benchmark(variants=("mine",))
