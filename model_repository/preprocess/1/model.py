"""Stage 0: scan bytes to the networks' image, and thresholds to gates. All of it is `serving.preprocessing`."""

from __future__ import annotations

import os
import time

import cv2
import numpy as np
import triton_python_backend_utils as pb_utils

from serving import pipeline
from serving.backends.onnxruntime.hanging import hung_s, no_longer_than
from serving.backends.onnxruntime.request_log import OK, Done, StepLog
from serving.errors import LungstreamsError
from serving.preprocessing import prepare


class TritonPythonModel:
    """What the Python stub looks for."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        """Nothing to complete: the config is rendered from `serving.pipeline`."""
        return auto_complete_model_config

    def initialize(self, args):
        """One thread for each instance: OpenCV's pool would compete with the networks' for the same cores."""
        cv2.setNumThreads(1)
        try:
            self._log = StepLog.of_stub(args, os.environ, pb_utils.Logger.log_warn)
        except OSError as error:
            raise pb_utils.TritonModelException(f"{args['model_name']}: the request log: {error}") from error
        try:
            self._hung_s = hung_s(os.environ)
        except ValueError as error:
            raise pb_utils.TritonModelException(f"{args['model_name']}: {error}") from error

    def execute(self, requests):
        """Each request gets a response of its own, so that a bad one takes no other with it."""
        with no_longer_than(self._hung_s):
            return [self._respond(request) for request in requests]

    def _respond(self, request):
        started_s = time.perf_counter()
        response, items, kinds = _prepared(request)
        if self._log is not None:
            outcome = ", ".join(sorted(kinds)) or OK
            self._log.write([Done(request.request_id(), items, outcome)], 1e3 * (time.perf_counter() - started_s))
        return response


def _prepared(request):
    """The response, how many items the request has, and the kinds of errors among them."""
    scans, modalities, thresholds = (
        pb_utils.get_input_tensor_by_name(request, tensor.name).as_numpy() for tensor in pipeline.PREPROCESS.inputs
    )
    images = np.zeros((len(scans), *pipeline.IMAGE.shape), np.uint8)
    # NaN opens no gate: what a bad item reads downstream.
    gates = np.full((len(scans), *pipeline.GATES.shape), np.nan, np.float32)
    problems, kinds = [], set()
    for item in range(len(scans)):
        try:
            modality = modalities[item, 0].decode("utf-8", "replace")
            images[item], gates[item] = prepare(scans[item, 0], modality, thresholds[item])
        except LungstreamsError as error:
            problems.append(str(error))
            kinds.add(type(error).__name__)
        except Exception as error:
            # A decoder that failed in a way we did not foresee is an answer to this request alone, and its own
            # words, which may quote the patient's data, are not for the wire or the log.
            problems.append(f"expected a scan that can be prepared, got a failure inside ({type(error).__name__})")
            kinds.add(type(error).__name__)
    if problems and len(problems) == len(scans):
        text = "; ".join(dict.fromkeys(problems))
        refused = pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(text))
        return refused, len(scans), kinds
    answers = {pipeline.IMAGE.name: images, pipeline.GATES.name: gates}
    response = pb_utils.InferenceResponse(
        output_tensors=[pb_utils.Tensor(tensor.name, answers[tensor.name]) for tensor in pipeline.PREPROCESS.outputs]
    )
    return response, len(scans), kinds
