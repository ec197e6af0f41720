"""Any task on the tiny models: a model of it that has learned something, and its records."""

import numpy as np
import torch

from fedpact.common import base_models, tasks
from fedpact.common import model as models


def learned(study):
    """The study's model with an adapter in which nothing is zero."""
    model = models.build(study, torch.device("cpu"))
    weights = models.get_adapter(model)
    drawn = np.random.default_rng(0).normal(0, 1, weights.flat.shape).astype(np.float32)
    models.set_adapter(model, type(weights)(weights.manifest, drawn))
    return model


def encoded(study, rows=None):
    """Records of at most twelve tokens: those given, or the task's invented ones."""
    task = tasks.for_study(study)
    return task.encode(base_models.load_processor(study), rows or task.invented(), 12)
