"""Export to ONNX: onnxruntime computes what torch computes."""

import numpy
import onnxruntime
import pytest
import timm
import torch

import hyena_vision

SMALL = dict(img_size=64, embed_dim=24, depth=1, filter_dim=8, num_classes=7)
BATCH = torch.export.Dim("batch")
HEIGHT, WIDTH = (16 * torch.export.Dim(name, min=2, max=64) for name in ("height", "width"))


# An export takes seconds: a size that is fixed in 1D, free ones in 2D. test_exports_with_free_height_and_width has both
@pytest.mark.parametrize(
    ("name", "dynamic", "shapes"),
    [
        ("hyena_vit_tiny", None, [(2, 3, 64, 96)]),
        ("hyena2d_vit_tiny", {0: BATCH, 2: HEIGHT, 3: WIDTH}, [(2, 3, 64, 96), (1, 3, 112, 48), (3, 3, 32, 208)]),
    ],
    ids=["static", "free"],
)
def test_onnxruntime_gives_the_logits_of_torch(name, dynamic, shapes):
    model = timm.create_model(name, **SMALL).eval()
    with torch.no_grad():
        for weight in model.parameters():
            # No path may hide behind an initial value that is small or zero.
            weight.add_(0.1 * torch.randn_like(weight))
        model.head.weight.mul_(5)
    dynamic_shapes = None if dynamic is None else (dynamic,)
    example = torch.randn(shapes[0])
    program = torch.onnx.export(model, (example,), dynamic_shapes=dynamic_shapes, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for shape in shapes:
        x = torch.randn(shape)
        with torch.inference_mode():
            expected = model(x).numpy()
        (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert expected.std() > 0.3
        numpy.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * min(1, expected.std()))


def test_attention_replaced_in_a_model_of_timm():
    settings = dict(img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=2, num_classes=7)
    model = timm.create_model("vit_tiny_patch16_224", **settings).eval()
    hyena_vision.replace_attention(model, filter_dim=8)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
        model.head.weight.mul_(5)
    x = torch.randn(2, 3, 32, 32)
    program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    expected = model(x).detach().numpy()
    assert expected.std() > 0.3
    numpy.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
