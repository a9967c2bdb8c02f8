"""What torch models do alike."""

import numpy as np
import torch

from api_client.wire.messages import Kind
from worker.backends.base import Placement
from worker.backends.torch_model import TorchModel
from worker.catalogue import Entry


class Sees(TorchModel):
    def embed_images(self, pixels):
        raise NotImplementedError


def test_pictures_for_a_gpu_are_collated_in_page_locked_memory_if_there_is_any():
    model = Sees(Entry("some/model"), Placement(device="cuda:0"))
    rows = [np.full((4, 4, 3), number, np.uint8) for number in range(3)]
    collated = model.collate(Kind.IMAGE, rows)
    assert np.array_equal(collated, rows)
    assert torch.from_numpy(collated).is_pinned() == torch.cuda.is_available()
    assert model.collate(Kind.IMAGE, collated) is collated
