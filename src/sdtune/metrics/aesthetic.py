"""The LAION aesthetic predictor: how its raters, from 1 to 10, would have liked a picture, from CLIP ViT-L/14's embedding of it.

Version 1 is one linear layer ("weight", "bias"). Version 2 (sac+logos+ava1) is five without anything between them but the
dropout of training, hence a linear map as well. Both read embeddings of unit length.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sdtune.errors import EvaluationError
from sdtune.metrics.vectors import unit

Array = NDArray[np.float64]

LAYERS = tuple(f"layers.{place}" for place in (0, 2, 4, 6, 7))
"""Of version 2; the places between are dropout."""


def head(tensors: Mapping[str, Array]) -> tuple[Array, float]:
    """The predictor as one linear map: its weights (E,) and what is added. Raises EvaluationError for other names or sizes."""
    layers = LAYERS if f"{LAYERS[0]}.weight" in tensors else ("",)
    names = [f"{layer}.weight".lstrip(".") for layer in layers]
    try:
        weight = np.eye(np.asarray(tensors[names[0]]).shape[1])
        bias = np.zeros(len(weight))
        for name in names:
            matrix = np.asarray(tensors[name], np.float64)
            weight, bias = (
                matrix @ weight,
                matrix @ bias + np.asarray(tensors[name.replace("weight", "bias")], np.float64),
            )
    except (KeyError, ValueError, IndexError) as error:
        raise EvaluationError(
            f"the aesthetic predictor's file has not the layers {', '.join(names)} ({error})"
        ) from None
    if weight.shape[0] != 1:
        raise EvaluationError(f"the aesthetic predictor's file ends in {weight.shape[0]} values, not in one")
    return weight[0], float(bias[0])


def aesthetic(pictures_NE: Array, weight_E: Array, bias: float) -> Array:
    """The predicted rating of each picture, (N,)."""
    if pictures_NE.shape[1] != len(weight_E):
        raise EvaluationError(
            f"embeddings of {pictures_NE.shape[1]} values, where the predictor reads {len(weight_E)}: take those of clip-l14"
        )
    return np.asarray(unit(pictures_NE) @ weight_E + bias)
