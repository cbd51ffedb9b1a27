"""MobileStyleGAN in OpenVINO graphs, recognized by operations and connections rather than by names.

Both networks are traversed from the result back to the input, and every layer on the way must match the architecture.
Shapes are inferred from constants first (`ir_network.infer`), so that the exporter's way of writing them does not
matter. Groups of layers with one meaning (pixel norm, the inverse wavelet transform) are recognized by their values:
they must compute the same as the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stylefusion_hf.conversion.ir_network import Network, run
from stylefusion_hf.conversion.layouts import Converted
from stylefusion_hf.conversion.openvino_ir import Output, parse_dims
from stylefusion_hf.core.untrusted.inert import Budget
from stylefusion_hf.models.layers import normalize_2nd_moment
from stylefusion_hf.models.mobile_stylegan import MobileStyleGANGenerator
from stylefusion_hf.ops.bias_act import SLOPE
from stylefusion_hf.ops.wavelets import inverse_haar

GAIN = math.sqrt(2)  # of the mapping network's activations
TOLERANCE = 1e-4  # between a part of a graph and the same part of the model, relative to the largest number
CODE_TOLERANCE, IMAGE_TOLERANCE = 1e-4, 1e-3  # between entire networks
RESHAPES = ("Reshape", "Squeeze", "Unsqueeze")
LINEAR = (
    *RESHAPES,
    "Add",
    "Concat",
    "GroupConvolutionBackpropData",
    "Split",
    "Subtract",
    "Transpose",
    "VariadicSplit",
)


# --- Mapping: pixel norm and layers of leaky ReLU --------------------------------------------------------------------


def is_mapping(network: Network) -> bool:
    """Return whether the network outputs vectors; the synthesis network outputs pictures."""
    return len(network.shape(network.result)) == 2


def read_mapping(network: Network) -> tuple[dict, dict[str, Tensor]]:
    """Read config and weights of the mapping network."""
    x, layers = network.result, []
    first = network.shape(network.parameter)
    while not _is_pixel_norm(network, x):
        active, gain = network.operands(x, "Multiply", "the gain of a mapping layer's activation, or pixel norm")
        if gain.numel() != 1 or not float(gain) > 0:
            raise network.error(x, "a positive gain")
        x, weight, bias = network.linear(network.leaky_relu(active, "an activation", SLOPE), "a mapping layer")
        # The model's gain is fixed. A leaky ReLU commutes with positive factors, so a different gain can be folded
        # into the weights.
        factor = float(gain) / GAIN
        layers.append((scale_weight(weight, factor), scale_weight(bias, factor)))
    if not layers:
        raise network.error(x, "a mapping layer")
    layers.reverse()
    widths = [len(weight) for weight, _ in layers]
    if len(set(widths[:-1])) > 1:
        raise network.graph.error(f"its mapping layers have different widths: {widths[:8]}")
    config = {
        "z_dim": first[1],
        "w_dim": widths[-1],
        "mapping_layers": len(layers),
        "mapping_width": None if len(set(widths)) == 1 else widths[0],
    }
    state = {}
    for i, (weight, bias) in enumerate(layers):
        state[f"mapping.layers.{i}.weight"], state[f"mapping.layers.{i}.bias"] = weight, bias
    return config, state


def _is_pixel_norm(network: Network, output: Output) -> bool:
    """Return whether `output` is the input scaled to a mean square of one."""
    given = network.shape(network.parameter)
    if network.shape(output) != given or network.layer(output).type not in ("Multiply", "Divide"):
        return False
    if any(network.is_constant(source) for source in network.layer(output).inputs):
        return False
    z = torch.randn(given, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    (found,) = run(network.graph, network.values, {network.parameter: z}, [output])
    return bool(torch.allclose(found, normalize_2nd_moment(z), rtol=TOLERANCE, atol=TOLERANCE))


# --- Synthesis -------------------------------------------------------------------------------------------------------


@dataclass
class Style:
    """An affine layer w -> style vector."""

    output: Output
    weight: Tensor
    bias: Tensor


class SynthesisReader:
    """A traversal of a synthesis network from the picture back to its constant input.

    Attributes:
        state: after `read`, the layers' weights under the model's names.
        styles: after `read`, the affine layers in the order of a packed style code.
    """

    def __init__(self, network: Network):
        self.network = network
        self.state: dict[str, Tensor] = {}
        self.styles: list[Style] = []

    def read(self) -> dict:
        """Read the synthesis network and return its config."""
        net = self.network
        shape = net.shape(net.result)
        if len(shape) != 4 or shape[0] != 1 or shape[2] != shape[3]:
            raise net.error(net.result, "one square picture")
        styled, part = self._convolution(self._wavelets(net.result, "the picture"), "the picture's layer")
        if part["weight"].shape[2:] != (1, 1) or "noise" in part:
            raise net.error(net.result, "a 1 x 1 convolution without noise before the last wavelet transform")
        x, gain = self._styled(styled, "the picture's layer")
        weight = part["weight"]
        self.state |= {
            "synthesis.to_image.weight": scale_weight(weight, gain * math.sqrt(weight.shape[1])),
            "synthesis.to_image.bias": part["bias"],
        }
        blocks, channels = [], [weight.shape[1]]
        while True:
            active = net.leaky_relu(x, "an activation", SLOPE)
            styled, second = self._convolution(active, "a convolution")
            if second["weight"].shape[2:] != (1, 1):
                break
            y, second = self._separable(styled, second)
            styled, first = self._convolution(net.leaky_relu(y, "an activation", SLOPE), "a 1 x 1 convolution")
            y, first = self._separable(styled, first)
            x, gain = self._styled(self._wavelets(y, "the input of a depthwise convolution"), "a wavelet transform")
            # The transform is linear, so a gain of its style can be folded into the convolution that follows.
            first["depthwise"] = scale_weight(first["depthwise"], gain)
            blocks.append((first, second))
            channels.append(net.shape(x)[1])
        self._first_layer(styled, second)
        noises = {"synthesis.conv": second.get("noise")}
        for k, block in enumerate(reversed(blocks)):
            for name, part in zip(("conv1", "conv2"), block, strict=True):
                prefix = f"synthesis.blocks.{k}.{name}"
                noises[prefix] = part.pop("noise", None)
                self.state |= {f"{prefix}.{key}": tensor for key, tensor in part.items()}
        self.styles.reverse()
        self.state["affine_weight"] = torch.cat([style.weight for style in self.styles])
        self.state["affine_bias"] = torch.cat([style.bias for style in self.styles])
        return {
            "resolution": shape[2],
            "channels": channels[::-1],
            "img_channels": shape[1],
            "w_dim": self.styles[0].weight.shape[1],
            "use_noise": self._noise(noises),
        }

    # --- Parts of a block --------------------------------------------------------------------------------------------

    def _first_layer(self, styled: Output, part: dict[str, Tensor]) -> None:
        """Read the first layer, a 3 x 3 convolution of the styled constant."""
        net, weight = self.network, part["weight"]
        if weight.shape[2:] != (3, 3):
            raise net.error(styled, "the input of a 1 x 1 or 3 x 3 convolution")
        const, gain = self._styled(styled, "the first layer")
        if not net.is_constant(const) or net.shape(const)[2:] != (4, 4):
            raise net.error(const, "a constant of 4 x 4")
        self.state |= {
            "synthesis.const": net.values[const][0],
            "synthesis.conv.weight": scale_weight(weight, gain * math.sqrt(9 * weight.shape[1])),
            "synthesis.conv.bias": part["bias"],
        }

    def _separable(self, depthwise: Output, pointwise: dict[str, Tensor]) -> tuple[Output, dict[str, Tensor]]:
        """Return the input of a styled depthwise convolution, and the weights of both convolutions."""
        net = self.network
        channels = net.shape(depthwise)[1]
        kind = "Convolution" if channels == 1 and net.layer(depthwise).type == "Convolution" else "GroupConvolution"
        styled, weight = net.second(depthwise, kind, "a depthwise convolution")
        if weight.shape[0] != channels or weight.numel() != 9 * channels or not self._plain(depthwise, 1):
            raise net.error(depthwise, "a depthwise 3 x 3 convolution of stride 1")
        x, gain = self._styled(styled, "a depthwise convolution")
        part = {"depthwise": scale_weight(weight.reshape(channels, 1, 3, 3), gain * math.sqrt(9 * channels))}
        part |= {"pointwise": pointwise["weight"], "bias": pointwise["bias"]}
        return x, part | ({"noise": pointwise["noise"]} if "noise" in pointwise else {})

    def _convolution(self, output: Output, expected: str) -> tuple[Output, dict[str, Tensor]]:
        """Return the input of a convolution, and its weight, bias and (if present) noise."""
        net, part = self.network, {}
        channels, size = net.shape(output)[1], net.shape(output)[2:]
        while net.layer(output).type == "Add":
            output, constant = net.operands(output, "Add", f"the bias or noise of {expected}")
            dims = (1,) * (4 - constant.ndim) + tuple(constant.shape)
            kind = {(1, 1, *size): "noise", (1, channels, 1, 1): "bias"}.get(dims)
            if kind is None or kind in part:
                raise net.error(output, f"a convolution, with one bias and one noise of {expected} after it,")
            part[kind] = constant.reshape(size if kind == "noise" else (channels,))
        x, weight = net.second(output, "Convolution", expected)
        if "bias" not in part:
            raise net.error(output, f"a bias after {expected}")
        if weight.shape[2] != weight.shape[3] or not self._plain(output, weight.shape[2] // 2):
            raise net.error(output, f"{expected} of stride 1 that keeps the size")
        return x, part | {"weight": weight}

    def _plain(self, output: Output, padding: int) -> bool:
        """Return whether a convolution has stride and dilation 1, and this padding."""
        attributes = self.network.layer(output).attributes
        wanted = {"strides": (1, 1), "dilations": (1, 1), "pads_begin": (padding,) * 2, "pads_end": (padding,) * 2}
        return all(parse_dims(attributes.get(name, "")) == dims for name, dims in wanted.items())

    def _styled(self, output: Output, expected: str) -> tuple[Output, float]:
        """Return the tensor that a style scales, and the style's gain. Records the style's affine layer."""
        net = self.network
        inputs = net.expect(output, "Multiply", f"the styled input of {expected}")
        columns = (1, net.shape(output)[1], 1, 1)
        styles = [source for source in inputs if net.shape(source) == columns and not net.is_constant(source)]
        if len(inputs) != 2 or len(styles) != 1:
            raise net.error(output, f"the input of {expected}, scaled by a style of one number per channel,")
        (x,) = (source for source in inputs if source != styles[0])
        if net.shape(x) != net.shape(output):
            raise net.error(x, f"the input of {expected}")
        (style,), gain = styles, 1.0
        while net.layer(style).type in (*RESHAPES, "Multiply"):
            if net.layer(style).type == "Multiply":
                style, factor = net.operands(style, "Multiply", "the gain of a style")
                if factor.numel() != 1:
                    raise net.error(style, "a style with one gain for all channels")
                gain *= float(factor)
            else:
                style = net.layer(style).inputs[0]
        source, weight, bias = net.linear(style, f"the affine layer of {expected}")
        if source != net.parameter or len(weight) != columns[1]:
            raise net.error(source, f"the input w of the affine layer of {expected}")
        self.styles.append(Style(style, weight, bias))
        return x, gain

    def _wavelets(self, output: Output, expected: str) -> Output:
        """Return the bands whose inverse Haar transform is `output`."""
        net = self.network
        batch, channels, height, width = net.shape(output)
        bands = (batch, 4 * channels, height // 2, width // 2)
        found: set[Output] = set()
        pending, seen = [output], {output}
        while pending:
            at = pending.pop()
            if net.shape(at) == bands:
                found.add(at)
            elif net.layer(at).type in LINEAR:
                more = [s for s in net.layer(at).inputs if s not in seen and not net.is_constant(s)]
                pending += more
                seen.update(more)
            else:
                raise net.error(at, f"a part of the inverse wavelet transform that gives {expected}")
        if len(found) != 1:
            raise net.error(output, f"the inverse wavelet transform of {'x'.join(map(str, bands))}")
        (source,) = found
        x = torch.randn(bands, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
        (given,) = run(net.graph, net.values, {source: x}, [output])
        if not torch.allclose(given, inverse_haar(x), rtol=TOLERANCE, atol=TOLERANCE):
            raise net.error(output, "the inverse Haar transform of bands LL, then LH, HL, HH of each channel,")
        return source

    def _noise(self, noises: dict[str, Tensor | None]) -> bool:
        """Store noise as maps of unit RMS and their strengths. Return False if no layer has any."""
        if all(noise is None for noise in noises.values()):
            return False
        for k, (prefix, noise) in enumerate(noises.items()):
            side = 4 * 2 ** ((k + 1) // 2)
            noise = torch.zeros(side, side) if noise is None else noise
            strength = noise.float().square().mean().sqrt()
            self.state[f"{prefix}.noise_strength"] = strength
            self.state[f"{prefix}.noise_const"] = noise / strength if strength > 0 else noise
        return True


def scale_weight(weight: Tensor, factor: float) -> Tensor:
    """Multiply a weight by a factor, without a copy if the factor is one."""
    return weight if abs(factor - 1) < 1e-7 else weight * factor


# --- Both networks ---------------------------------------------------------------------------------------------------


def read_networks(mapping: Network, synthesis: Network, psi: float) -> tuple[Converted, list[Style]]:
    """Read a generator's config and weights from two graphs, and its affine layers in the order of a style code.

    Raises:
        ConversionError: a layer does not match the architecture; names the first one.
    """
    reader = SynthesisReader(synthesis)
    config, state = read_mapping(mapping)
    shape = reader.read()
    if shape["w_dim"] != config["w_dim"]:
        raise synthesis.graph.error(
            f"takes a w of {shape['w_dim']} numbers, but {mapping.graph.file} gives {config['w_dim']}: they belong to"
            " different models"
        )
    budget = Budget(synthesis.graph.file, len(mapping.graph.weights) + len(synthesis.graph.weights))
    state |= reader.state
    for tensor in state.values():
        budget.charge_data(4 * tensor.numel())  # a hostile file may use one constant for many layers
    config |= shape | {"label_dim": 0, "truncation_psi": psi}
    return Converted(config, state, [*mapping.unused(), *synthesis.unused()]), reader.styles


@torch.inference_mode()
def compare_with_graphs(
    generator: MobileStyleGANGenerator, mapping: Network, synthesis: Network, styles: list[Style], seed: int = 0
) -> dict[str, float]:
    """Return the largest differences between a converted model and the original graphs on one sample.

    Raises:
        ConversionError: the differences exceed rounding errors.
    """
    z = torch.randn(1, generator.config.z_dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    (w,) = run(mapping.graph, mapping.values, {mapping.parameter: z}, [mapping.result])
    wanted = [*(style.output for style in styles), synthesis.result]
    *codes, picture = run(synthesis.graph, synthesis.values, {synthesis.parameter: w}, wanted)
    code = torch.cat(codes, dim=1)
    pairs = (
        ("w", generator.mapping(z), w, CODE_TOLERANCE),
        ("style code", generator.to_style(w), code, CODE_TOLERANCE),
        ("picture", generator.synthesis(code), picture, IMAGE_TOLERANCE),
    )
    errors = {}
    for name, found, expected, tolerance in pairs:
        errors[name] = float((found - expected).abs().max())
        if not errors[name] <= tolerance * max(1.0, float(expected.abs().max())):
            raise synthesis.graph.error(f"the converted model's {name} differs from the graph's by {errors[name]:.2g}")
    return errors
