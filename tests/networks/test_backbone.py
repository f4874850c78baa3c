# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Any timm backbone as a map, and the mask token in the student."""

import copy
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import timm
import torch
from torch import nn

from torchgeo_cmid.networks import SpatialBackbone, Student, Teacher

HEADS = {'hidden_dim': 32, 'num_prototypes': 16, 'bottleneck_dim': 8}


class TestSpatialBackbone:
    @pytest.mark.parametrize(
        ('model', 'size', 'shape', 'stem'),
        [
            ('resnet18', 96, (512, 3, 3), 64),
            ('resnet50', 64, (2048, 2, 2), 64),
            ('swin_tiny_patch4_window7_224', 64, (768, 2, 2), 96),
            ('swin_tiny_patch4_window7_224', 224, (768, 7, 7), 96),
            ('convnext_atto', 96, (320, 3, 3), 40),
            ('vit_tiny_patch16_224', 64, (192, 4, 4), 192),
            ('efficientnet_b0', 64, (1280, 2, 2), 16),
            ('densenet121', 64, (1024, 2, 2), 64),
        ],
    )
    def test_map(
        self, model: str, size: int, shape: tuple[int, ...], stem: int
    ) -> None:
        backbone = SpatialBackbone(model, 4, size).eval()
        features = backbone(torch.rand(2, 4, size, size))
        assert features.shape == (2, *shape)
        assert (backbone.num_features, *backbone.map_size) == shape
        assert backbone.stride * shape[1] == size
        assert backbone.stem_features == stem
        drops = (nn.Dropout,)
        assert all(m.p == 0 for m in backbone.modules() if isinstance(m, drops))

    def test_swin_map_is_after_its_final_norm(self) -> None:
        backbone = SpatialBackbone('swin_tiny_patch4_window7_224', 3, 64).eval()
        features = backbone(torch.rand(2, 3, 64, 64))
        mean = features.mean(dim=1)  # of a fresh layer norm
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-5, rtol=0)

    def test_swin_stem_where_height_equals_channels(self) -> None:
        """At 512 px Swin-B's stem gives 128 x 128 x 128: which axis is which?"""
        backbone = SpatialBackbone('swin_base_patch4_window7_224', 3, 512)
        assert not backbone.stem_is_channels_first
        assert backbone.map_size == (16, 16)

    def test_what_the_map_does_not_depend_on_is_frozen(self) -> None:
        backbone = SpatialBackbone('convnext_atto', 3, 64)
        frozen = [n for n, p in backbone.named_parameters() if not p.requires_grad]
        assert frozen == ['backbone.head.norm.weight', 'backbone.head.norm.bias']

    def test_unknown_model(self) -> None:
        with pytest.raises(ValueError, match=r"'resnet5O' is not a timm .* resnet50"):
            SpatialBackbone('resnet5O', 3, 64)

    @pytest.mark.parametrize(
        ('model', 'size', 'message'),
        [
            ('crossvit_9_240', 240, 'gives no map of features'),
            ('convnext_atto', 75, 'must be a multiple of its stride'),
            ('vit_tiny_patch16_224', 72, 'must be a multiple of its stride'),
        ],
    )
    def test_no_map(self, model: str, size: int, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            SpatialBackbone(model, 3, size)


class TestStudent:
    @pytest.mark.parametrize(
        ('model', 'stem'),
        [
            ('resnet18', 'maxpool'),
            ('swin_tiny_patch4_window7_224', 'patch_embed'),
            ('vit_tiny_patch16_224', 'patch_embed'),
            ('convnext_atto', 'stem'),
        ],
    )
    def test_mask_token_is_added_after_the_stem(self, model: str, stem: str) -> None:
        """The features right after the stem differ by the token where masked."""
        student = Student(model, 3, 64, **HEADS).eval()
        assert student.stem is student.backbone.get_submodule(stem)
        nn.init.normal_(student.mask_token)
        mask = torch.tensor([[[True, False], [False, False]]])
        # every pixel is the spectral mean already, so only the token makes a difference
        x = torch.full((1, 3, 64, 64), 0.3)
        seen: list[torch.Tensor] = []
        student.stem.register_forward_hook(
            lambda *args: seen.append(args[2].clone()), prepend=True
        )
        whole = student(x)
        masked = student(x, mask)
        assert len(seen) == 2
        torch.testing.assert_close(seen[0], seen[1])  # before the token
        assert not torch.allclose(whole, masked)
        nn.init.zeros_(student.mask_token)
        torch.testing.assert_close(student(x, mask), whole)

    def test_token_positions(self) -> None:
        student = Student('resnet18', 3, 64, **HEADS).eval()
        nn.init.ones_(student.mask_token)
        mask = torch.tensor([[[True, False], [False, False]]])
        x = torch.zeros(1, 3, 64, 64)
        inputs: list[torch.Tensor] = []
        student.backbone.layer1.register_forward_pre_hook(
            lambda module, args: inputs.append(args[0].clone())
        )
        student(x)
        student(x, mask)
        difference = inputs[1] - inputs[0]  # (1, 64, 16, 16)
        assert (difference[:, :, :8, :8] == 1).all()
        assert difference.sum() == 64 * 64

    def test_gradient_reaches_all_that_is_trained(self) -> None:
        student = Student('vit_tiny_patch16_224', 3, 64, **HEADS)
        student(torch.rand(2, 3, 64, 64), torch.ones(2, 2, 2).bool()).sum().backward()
        missing = [
            name
            for name, parameter in student.named_parameters()
            if parameter.requires_grad and parameter.grad is None
        ]
        assert all(name.split('.')[0] != 'backbone' for name in missing)
        assert student.mask_token.grad is not None

    def test_token_after_another_backbone_was_put_in(self) -> None:
        student = Student('test_resnet', 3, 64, **HEADS).eval()
        nn.init.ones_(student.mask_token)
        x, mask = torch.rand(1, 3, 64, 64), torch.eye(2).bool()[None]
        expected = student(x, mask)
        assert not torch.allclose(expected, student(x))
        for _ in range(2):  # the copy of a copy is hooked once, too
            student.backbone = copy.deepcopy(student.backbone)
            assert torch.equal(student(x, mask), expected)
        plain = timm.create_model('test_resnet', num_classes=0).eval()
        plain.load_state_dict(student.backbone.state_dict())
        student.backbone = plain
        torch.testing.assert_close(student(x, mask), expected)


def by_file(network: nn.Module) -> nn.Module:
    """Pickle and unpickle."""
    copied: nn.Module = pickle.loads(pickle.dumps(network))
    return copied


class TestCompiled:
    """Whatever is compiled, training runs compiled, to the same numbers."""

    WAYS: ClassVar[dict[str, Callable[[Student, Any], Any]]] = {
        # regression: nothing was compiled by these two, without a word
        'backbone.compile': lambda s, b: s.backbone.compile(backend=b),
        'backbone = torch.compile': lambda s, b: setattr(
            s, 'backbone', torch.compile(s.backbone, backend=b)
        ),
        # regression: these ended in an error
        'student.compile': lambda s, b: s.compile(backend=b),
        'both': lambda s, b: (s.backbone.compile(backend=b), s.compile(backend=b)),
    }

    @pytest.mark.parametrize(
        ('way', 'name'),
        [*((way, 'test_resnet') for way in WAYS), ('backbone.compile', 'test_vit')],
    )
    def test_student(self, way: str, name: str) -> None:
        torch._dynamo.reset()
        graphs = []
        runs = []

        def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
            graphs.append(graph)

            def run(*args: Any) -> Any:
                runs.append(1)
                return graph.forward(*args)

            return run

        torch.manual_seed(0)
        student = Student(name, 3, 64, **HEADS)
        nn.init.normal_(student.mask_token)
        compiled = copy.deepcopy(student)
        self.WAYS[way](compiled, backend)
        for step in range(10):  # beyond the compiler's limit of attempts
            x, mask = torch.randn(2, 3, 64, 64), torch.rand(2, 2, 2) > 0.5
            features = []
            for model in (student, compiled):
                model.zero_grad()
                features.append(model(x, mask))
                features[-1].square().mean().backward()
            torch.testing.assert_close(*features)
            assert len(graphs) == 1
            assert len(runs) == step + 1
        for a, b in zip(student.parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)
        # what was compiled calls its model as before
        x = torch.randn(2, 3, 64, 64)
        student.eval(), compiled.eval()
        torch.testing.assert_close(student.backbone(x), compiled.backbone(x))
        torch.testing.assert_close(student(x), compiled(x))
        torch.testing.assert_close(student(x, mask), compiled(x, mask))

    def test_teacher(self) -> None:
        torch._dynamo.reset()
        runs = []

        def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
            runs.append(graph)
            return graph.forward

        teacher = Teacher(Student('test_resnet', 3, 64, **HEADS))
        teacher.backbone.compile(backend=backend)
        with torch.no_grad():
            teacher(torch.randn(2, 3, 64, 64))
        assert len(runs) == 1

    @pytest.mark.parametrize('copied', [copy.deepcopy, by_file])
    def test_copies_and_files(self, copied: Callable[[nn.Module], nn.Module]) -> None:
        """As torch has it: keys stay, and a copy is not compiled."""
        network = SpatialBackbone('test_resnet', 3, 64).eval()
        keys, x = network.state_dict().keys(), torch.randn(1, 3, 64, 64)
        network.backbone.compile(backend='eager')
        expected = network(x)
        assert network.state_dict().keys() == keys
        assert 'forward' not in vars(network.backbone)
        other = copied(network)
        assert other.backbone._compiled_call_impl is None  # type: ignore[union-attr]
        nn.init.zeros_(network.backbone.conv1[0].weight)  # not what the copy runs
        torch.testing.assert_close(other(x), expected)

    def test_error_leaves_no_trace(self) -> None:
        student = Student('test_resnet', 3, 64, **HEADS)
        student.backbone.compile(backend='eager')
        with pytest.raises(RuntimeError):
            student(torch.randn(2, 4, 64, 64), torch.eye(2).bool().expand(2, 2, 2))
        assert 'forward' not in vars(student.backbone)
        assert all(
            hook.mask is None  # type: ignore[union-attr]
            for hook in student.stem._forward_hooks.values()
        )


class TestTeacher:
    def test_follows(self) -> None:
        student = Student('resnet18', 3, 64, **HEADS)
        teacher = Teacher(student)
        assert not any(p.requires_grad for p in teacher.parameters())
        for name, parameter in teacher.named_parameters():
            assert torch.equal(parameter, student.get_parameter(name))
        assert not hasattr(teacher, 'decoder')
        assert {name.split('.')[0] for name, _ in teacher.named_parameters()} == {
            'backbone',
            'projector',
            'prototype_head',
        }
        x = torch.rand(2, 3, 64, 64)
        torch.testing.assert_close(teacher(x), student(x))

    def test_update(self) -> None:
        student = Student('resnet18', 3, 64, **HEADS)
        teacher = Teacher(student)
        for parameter in student.parameters():
            nn.init.normal_(parameter)
        before = {name: p.clone() for name, p in teacher.named_parameters()}
        buffers = {name: b.clone() for name, b in teacher.named_buffers()}
        teacher.update(student, 0.9)
        for name, parameter in teacher.named_parameters():
            expected = 0.9 * before[name] + 0.1 * student.get_parameter(name)
            torch.testing.assert_close(parameter, expected)
        for name, buffer in teacher.named_buffers():  # batch norm keeps its own
            assert torch.equal(buffer, buffers[name])
