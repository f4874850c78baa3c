# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""InfoNCE and its queue against the published implementation; BYOL by its formula."""

import pytest
import torch
import torch.nn.functional as F

from tests.goldens import assert_relative, load_golden
from torchgeo_cmid.losses import BYOLLoss, QueueInfoNCE


class TestQueueInfoNCE:
    def test_golden(self) -> None:
        golden = load_golden('contrastive')
        temperature = float(golden['temperature'])
        criterion = QueueInfoNCE(16, 32, temperature)
        criterion.queue.copy_(golden['queue'])
        query = golden['query'].requires_grad_()
        loss = criterion(query, golden['key'])
        assert_relative(loss, golden['loss'], 1e-5)
        loss.backward()
        assert query.grad is not None
        assert_relative(query.grad, golden['grad_query'], 1e-4)
        assert torch.equal(criterion.queue, golden['queue'])

    def test_double_precision(self) -> None:
        """Value and gradient of the plain cross-entropy, to rounding."""
        torch.manual_seed(0)
        criterion = QueueInfoNCE(8, 20).double()
        q, key = F.normalize(torch.randn(2, 5, 8, dtype=torch.float64), dim=-1)
        query, reference = q.clone().requires_grad_(), q.clone().requires_grad_()
        criterion(query, key).backward()
        positive = (reference * key).sum(dim=1, keepdim=True)
        logits = torch.cat([positive, reference @ criterion.queue], dim=1) / 0.2
        expected = F.cross_entropy(logits, torch.zeros(5, dtype=torch.long))
        expected.backward()
        torch.testing.assert_close(criterion(q, key), expected.detach())
        torch.testing.assert_close(query.grad, reference.grad)
        assert torch.autograd.gradcheck(criterion, (query, key))

    def test_enqueue_before_backward(self) -> None:
        """The queue is written in place, and the gradient is still the old queue's."""
        torch.manual_seed(0)
        criterion = QueueInfoNCE(8, 20)
        storage = criterion.queue.data_ptr()
        q, key = F.normalize(torch.randn(2, 5, 8), dim=-1)
        gradients = []
        for enqueue_first in (False, True):
            query = q.clone().requires_grad_()
            loss = criterion(query, key)
            if enqueue_first:
                criterion.enqueue(*key.expand(4, -1, -1))  # all of the queue
            loss.backward()
            gradients.append(query.grad)
        assert criterion.queue.data_ptr() == storage
        torch.testing.assert_close(criterion.queue[:, :5], key.T)
        assert torch.equal(*gradients)

    @pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
    def test_autocast(self, dtype: torch.dtype) -> None:
        """Also of embeddings that come as zeros, or in half precision."""
        torch.manual_seed(0)
        criterion = QueueInfoNCE(8, 20, temperature=0.01)
        q, key = F.normalize(torch.randn(2, 5, 8), dim=-1)
        for scale in (0, 1):
            query = (scale * q).to(dtype).requires_grad_()
            with torch.autocast('cpu', dtype):
                loss = criterion(query, key.to(dtype))
            loss.backward()
            assert torch.isfinite(loss)
            assert torch.isfinite(query.grad).all()

    def test_starts_with_unit_keys(self) -> None:
        queue = QueueInfoNCE(16, 32).queue
        torch.testing.assert_close(queue.norm(dim=0), torch.ones(32))

    def test_wraps_round(self) -> None:
        """A queue of 10 takes batches of 4: the third wraps."""
        criterion = QueueInfoNCE(2, 10)
        keys = torch.arange(24.0).view(12, 2)
        for batch in keys.split(4):
            criterion.enqueue(batch)
        assert criterion.queue_ptr.tolist() == [2]
        expected = torch.cat([keys[10:], keys[2:10]]).T
        assert torch.equal(criterion.queue, expected)

    def test_batch_longer_than_queue(self) -> None:
        criterion = QueueInfoNCE(2, 3)
        keys = torch.arange(16.0).view(8, 2)
        criterion.enqueue(keys)
        assert criterion.queue_ptr.tolist() == [2]
        assert torch.equal(criterion.queue, keys[[6, 7, 5]].T)

    def test_a_part_of_the_queue(self) -> None:
        """Ten keys of which four are in use do what a queue of four does."""
        part, whole = QueueInfoNCE(8, 10), QueueInfoNCE(8, 4)
        part.queue_ptr.fill_(7)
        part.use(4)
        whole.queue.copy_(part.queue[:, :4])
        whole.queue_ptr.copy_(part.queue_ptr)
        assert part.queue_ptr.tolist() == [3]
        rest = part.queue[:, 4:].clone()
        for _ in range(3):
            query, key = F.normalize(torch.randn(2, 3, 8), dim=-1)
            torch.testing.assert_close(part(query, key), whole(query, key))
            part.enqueue(key)
            whole.enqueue(key)
            assert torch.equal(part.queue[:, :4], whole.queue)
        assert torch.equal(part.queue[:, 4:], rest)

    def test_more_than_there_are(self) -> None:
        with pytest.raises(ValueError, match='queue_size=11 is more than the 10 keys'):
            QueueInfoNCE(8, 10).use(11)


class TestBYOLLoss:
    def test_formula(self) -> None:
        q, k = F.normalize(torch.randn(2, 5, 8), dim=-1)
        expected = (q - k).square().sum(dim=1).mean()
        torch.testing.assert_close(BYOLLoss()(q, k), expected)
