"""The ensemble on a real Triton, with networks whose answers are known."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http

from serving import pipeline
from serving.labels import MANIFESTATION_NAMES, STREAM_NAMES
from serving.pipeline import ENSEMBLE_NAME, ENSEMBLE_OUTPUTS, THRESHOLD_NAMES, mask_output
from serving.preprocessing import prepare
from serving.tritonserver import TritonServer
from tests.toy_models import QUADRANTS, STRIPS, expected_activation, expected_mask, expected_means

pytestmark = pytest.mark.triton

OUTPUT_NAMES = tuple(tensor.name for tensor in ENSEMBLE_OUTPUTS)
SUBSETS = [names for size in range(1, 8) for names in itertools.combinations(OUTPUT_NAMES, size)]
OPEN = (0.0,) * len(THRESHOLD_NAMES)
CLOSED = (1.0,) * len(THRESHOLD_NAMES)
MARGIN = 0.01
ROUNDING = 1e-3
"""A float32 sum of 87,000 pixels, in ORT's order and in numpy's."""

Answer = dict[str, np.ndarray]


@dataclass(frozen=True)
class Item:
    scan: bytes
    modality: str = "ct"
    thresholds: tuple[float, ...] = OPEN


def png(seed: int) -> bytes:
    """A grey image of four noisy quadrants whose brightnesses depend on the seed."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(20, 200, (2, 2)).astype(np.uint8)
    noise = rng.integers(0, 40, (128, 160), dtype=np.uint8)
    return cv2.imencode(".png", levels.repeat(64, axis=0).repeat(80, axis=1) + noise)[1].tobytes()


@pytest.fixture
def client(toy_triton: TritonServer) -> Iterator[grpc.InferenceServerClient]:
    with grpc.InferenceServerClient(toy_triton.grpc_url) as client:
        yield client


def infer(client: grpc.InferenceServerClient, items: Sequence[Item], outputs: Sequence[str] = OUTPUT_NAMES) -> Answer:
    values = (
        np.array([[item.scan] for item in items], object),
        np.array([[item.modality.encode()] for item in items], object),
        np.array([item.thresholds for item in items], np.float32),
    )
    inputs = []
    for tensor, array in zip(pipeline.ENSEMBLE_INPUTS, values, strict=True):
        inputs.append(grpc.InferInput(tensor.name, list(array.shape), tensor.dtype))
        inputs[-1].set_data_from_numpy(array)
    result = client.infer(ENSEMBLE_NAME, inputs, outputs=[grpc.InferRequestedOutput(name) for name in outputs])
    assert {output.name for output in result.get_response().outputs} == set(outputs)
    return {name: result.as_numpy(name) for name in outputs}


def expected(item: Item) -> Answer:
    """What one item must read, from the image alone and `pipeline.Gate`'s words."""
    image, gates = prepare(item.scan, item.modality, item.thresholds)
    diagnosis, findings = expected_means(image, QUADRANTS), expected_means(image, STRIPS)
    ran = diagnosis[0] >= gates[0]
    opened = {name: bool(ran and findings[i] >= gates[i + 1]) for i, name in enumerate(MANIFESTATION_NAMES)}
    opened["all"] = any(opened.values())
    answer = {
        "diagnosis": diagnosis,
        "activation": expected_activation(image),
        "manifestations": findings if ran else np.zeros_like(findings),
    }
    for stream in STREAM_NAMES:
        mask = expected_mask(image, stream)
        answer[mask_output(stream)] = mask if opened[stream] else np.zeros_like(mask)
    return answer


def assert_row(answer: Answer, row: int, wanted: Answer, *, atol: float = ROUNDING) -> None:
    for name in answer:
        np.testing.assert_allclose(answer[name][row], wanted[name], rtol=0, atol=atol, err_msg=name)


def executions(client: grpc.InferenceServerClient) -> dict[str, int]:
    return {s.name: s.execution_count for s in client.get_inference_statistics().model_stats}


def findings_of(item: Item) -> np.ndarray:
    return expected_means(prepare(item.scan, item.modality, item.thresholds)[0], STRIPS)


@pytest.mark.parametrize("outputs", SUBSETS, ids="+".join)
def test_every_subset_of_the_outputs_answers(client: grpc.InferenceServerClient, outputs: tuple[str, ...]) -> None:
    item = Item(png(1))
    assert_row(infer(client, [item], outputs), 0, expected(item))


def test_there_are_as_many_subsets_as_there_should_be() -> None:
    assert len(SUBSETS) == 2 ** len(OUTPUT_NAMES) - 1 == 127


def test_a_step_that_nobody_asked_for_does_not_run(client: grpc.InferenceServerClient) -> None:
    before = executions(client)
    infer(client, [Item(png(1))], ["manifestations"])
    after = executions(client)
    grown = {name for name in after if after[name] > before[name]}
    assert grown == {ENSEMBLE_NAME, "preprocess", "recognition", "manifestations"}


def test_open_gates_answer_every_network(client: grpc.InferenceServerClient) -> None:
    answer = infer(client, [Item(png(2))])
    assert_row(answer, 0, expected(Item(png(2))))
    assert (answer["manifestations"] > 0).all()
    assert all(answer[mask_output(stream)].any() for stream in STREAM_NAMES)


@pytest.mark.parametrize("thresholds", [OPEN, CLOSED], ids=["all open", "all closed"])
def test_an_xray_never_runs_the_stages_that_are_about_ct(
    client: grpc.InferenceServerClient, thresholds: tuple[float, ...]
) -> None:
    answer = infer(client, [Item(png(2), "xray", thresholds)])
    assert (answer["diagnosis"] > 0).all()
    # A network that ran would have left something: its means are over 0 and its masks have a first row.
    assert not answer["manifestations"].any()
    assert not any(answer[mask_output(stream)].any() for stream in STREAM_NAMES)


def test_a_diagnosis_under_its_threshold_closes_everything_after_it(client: grpc.InferenceServerClient) -> None:
    p_covid = expected(Item(png(3)))["diagnosis"][0]
    below = infer(client, [Item(png(3), thresholds=(p_covid - MARGIN, 0, 0, 0))])
    above = infer(client, [Item(png(3), thresholds=(p_covid + MARGIN, 0, 0, 0))])
    assert below["manifestations"].all()
    assert all(below[mask_output(stream)].any() for stream in STREAM_NAMES)
    assert not above["manifestations"].any()
    # Thresholds of 0 do not open on a stage that did not run.
    assert not any(above[mask_output(stream)].any() for stream in STREAM_NAMES)


@pytest.mark.parametrize("only", MANIFESTATION_NAMES)
def test_a_stream_runs_when_its_own_manifestation_reaches_its_threshold(
    client: grpc.InferenceServerClient, only: str
) -> None:
    findings = findings_of(Item(png(4)))
    thresholds = [0.0, *(findings + MARGIN)]
    thresholds[THRESHOLD_NAMES.index(only)] = findings[MANIFESTATION_NAMES.index(only)] - MARGIN
    answer = infer(client, [Item(png(4), thresholds=tuple(thresholds))])
    ran = {stream for stream in STREAM_NAMES if answer[mask_output(stream)].any()}
    assert ran == {"all", only}


def test_no_stream_runs_when_no_manifestation_reaches_its_threshold(client: grpc.InferenceServerClient) -> None:
    findings = findings_of(Item(png(4)))
    answer = infer(client, [Item(png(4), thresholds=(0.0, *(findings + MARGIN)))])
    assert answer["manifestations"].all()
    assert not any(answer[mask_output(stream)].any() for stream in STREAM_NAMES)


def test_each_row_of_a_mixed_batch_reads_what_it_would_alone(client: grpc.InferenceServerClient) -> None:
    items = [
        Item(png(10)),
        Item(png(11), "xray"),
        Item(png(12), thresholds=CLOSED),
        Item(png(13), thresholds=(0.0, 1.0, 0.0, 1.0)),
        Item(png(14), thresholds=(1.0, 0.0, 0.0, 0.0)),
        Item(png(15), "xray", CLOSED),
        Item(png(16), thresholds=(0.0, *findings_of(Item(png(16))))),
        Item(png(17), thresholds=(0.0, 1.0, 1.0, 0.0)),
    ]
    items[6] = Item(items[6].scan, thresholds=(0.0, *np.subtract(items[6].thresholds[1:], (MARGIN, -MARGIN, MARGIN))))
    together = infer(client, items)
    for row, item in enumerate(items):
        alone = infer(client, [item])
        assert_row(together, row, {name: array[0] for name, array in alone.items()}, atol=1e-6)
        assert_row(together, row, expected(item))


def test_a_bad_item_of_a_batch_takes_no_other_with_it(client: grpc.InferenceServerClient) -> None:
    items = [Item(png(20)), Item(b"no image"), Item(png(21), "xray"), Item(png(22), "mri"), Item(png(23))]
    answer = infer(client, items)
    for row in (0, 2, 4):
        assert_row(answer, row, expected(items[row]))
    for row in (1, 3):
        assert np.isnan(answer["diagnosis"][row]).all()
        assert np.isnan(answer["activation"][row]).all()
        assert not answer["manifestations"][row].any()
        assert not any(answer[mask_output(stream)][row].any() for stream in STREAM_NAMES)


@pytest.mark.parametrize(
    ("item", "says"),
    [
        (Item(b""), "empty"),
        (Item(b"no image"), "expected PNG, JPEG or DICOM"),
        (Item(png(1)[:60]), "expected"),
        (Item(png(1), "mri"), "mri"),
        (Item(png(1), thresholds=(0.0, 0.0, 0.0, 2.0)), "threshold"),
        (Item(png(1), thresholds=(float("nan"), 0.0, 0.0, 0.0)), "threshold"),
    ],
    ids=["empty", "text", "truncated", "modality", "threshold", "nan"],
)
def test_a_bad_request_gets_an_error_that_says_what_was_expected(
    client: grpc.InferenceServerClient, item: Item, says: str
) -> None:
    with pytest.raises(grpc.InferenceServerException) as caught:
        infer(client, [item])
    assert says in str(caught.value)
    assert "expected" in str(caught.value)
    # The server takes no harm.
    assert client.is_server_ready()
    assert_row(infer(client, [Item(png(1))]), 0, expected(Item(png(1))))


def test_a_batch_of_bad_items_only_is_an_error(client: grpc.InferenceServerClient) -> None:
    with pytest.raises(grpc.InferenceServerException, match=r"empty.*mri"):
        infer(client, [Item(b""), Item(png(1), "mri")])


def test_more_items_than_a_batch_holds_are_refused(client: grpc.InferenceServerClient) -> None:
    with pytest.raises(grpc.InferenceServerException, match="batch"):
        infer(client, [Item(png(1))] * (pipeline.MAX_BATCH_SIZE + 1))


def test_concurrent_requests_each_get_their_own_answer(client: grpc.InferenceServerClient) -> None:
    thresholds = [OPEN, CLOSED, (0.0, 1.0, 0.0, 1.0), (0.0, 0.0, 1.0, 1.0)]
    items = [Item(png(100 + i), "xray" if i % 5 == 0 else "ct", thresholds[i % 4]) for i in range(16)]
    bad = Item(b"no image")

    def ask(item: Item) -> Answer | str:
        try:
            return infer(client, [item])
        except grpc.InferenceServerException as error:
            return str(error)

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(ask, [*items, bad, bad, bad, bad]))
    for item, answer in zip(items, answers[:16], strict=True):
        assert not isinstance(answer, str), answer
        assert_row(answer, 0, expected(item))
    assert all(isinstance(answer, str) and "expected PNG" in answer for answer in answers[16:])


def test_the_server_describes_itself_as_the_pipeline_does(client: grpc.InferenceServerClient) -> None:
    metadata = client.get_model_metadata(ENSEMBLE_NAME)
    for found, wanted in (
        (metadata.inputs, pipeline.ENSEMBLE_INPUTS),
        (metadata.outputs, pipeline.ENSEMBLE_OUTPUTS),
    ):
        assert {(t.name, t.datatype, tuple(t.shape)) for t in found} == {
            (t.name, t.dtype, (-1, *t.shape)) for t in wanted
        }


@pytest.mark.parametrize("protocol", [grpc, http], ids=["gRPC", "HTTP"])
def test_nobody_registers_shared_memory(toy_triton: TritonServer, protocol: Any) -> None:
    url = toy_triton.grpc_url if protocol is grpc else toy_triton.http_url
    with protocol.InferenceServerClient(url) as anyone:
        with pytest.raises(grpc.InferenceServerException, match="restricted"):
            anyone.register_system_shared_memory("region", "/region", 64)
