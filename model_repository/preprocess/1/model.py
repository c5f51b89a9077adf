"""Stage 0: scan bytes to the networks' image, and thresholds to gates. All of it is `serving.preprocessing`."""

from __future__ import annotations

import cv2
import numpy as np
import triton_python_backend_utils as pb_utils

from serving import pipeline
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

    def execute(self, requests):
        """Each request gets a response of its own, so that a bad one takes no other with it."""
        return [_respond(request) for request in requests]


def _respond(request):
    scans, modalities, thresholds = (
        pb_utils.get_input_tensor_by_name(request, tensor.name).as_numpy() for tensor in pipeline.PREPROCESS.inputs
    )
    images = np.zeros((len(scans), *pipeline.IMAGE.shape), np.uint8)
    # NaN opens no gate: what a bad item reads downstream.
    gates = np.full((len(scans), *pipeline.GATES.shape), np.nan, np.float32)
    problems = []
    for item in range(len(scans)):
        try:
            modality = modalities[item, 0].decode("utf-8", "replace")
            images[item], gates[item] = prepare(scans[item, 0], modality, thresholds[item])
        except LungstreamsError as error:
            problems.append(str(error))
        except Exception as error:
            # A decoder that failed in a way we did not foresee is an answer to this request alone, and its own
            # words, which may quote the patient's data, are not for the wire or the log.
            problems.append(f"expected a scan that can be prepared, got a failure inside ({type(error).__name__})")
    if problems and len(problems) == len(scans):
        text = "; ".join(dict.fromkeys(problems))
        return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(text))
    answers = {pipeline.IMAGE.name: images, pipeline.GATES.name: gates}
    return pb_utils.InferenceResponse(
        output_tensors=[pb_utils.Tensor(tensor.name, answers[tensor.name]) for tensor in pipeline.PREPROCESS.outputs]
    )
