"""FusionHierarchy: parity with the authors' nets, the plain reference, identity, errors."""

import pytest
import torch
from accelerate import init_empty_weights

from stylefusion_hf.conversion.hierarchy import rename_fusion_net
from stylefusion_hf.models.fusion.hierarchy import FusionHierarchy
from stylefusion_hf.models.fusion.net import company, fuse_reference, novelty, signed
from tests.parity import PlainStyles, draw_weights, load_case, manifest, relative_error, style_vectors
from tests.small_fusion import SMALL, draw_codes, small

ODD = {"conv_sizes": [7, 5, 3, 1], "rgb_sizes": [6, 7]}  # widths that do not divide the padded width


# ----------------------------------------------------------------------------------------------------
# Parity with the authors' published code.

# What the authors' part names set, on top of the base code for every node (tests/data/parity/README.md).
PARTS = {
    "hair": ["bg_hair_clothes", "hair"],
    "face": ["face", "eyes", "skin_mouth", "mouth", "skin"],
    "background": ["background", "background_top", "background_bottom", "bg"],
    "all": ["all"],
    "mouth": ["skin_mouth", "face"],
    "eyes": ["eyes", "face"],
    "wheels": ["wheels"],
    "car": ["car", "wheels", "car_body"],
    "bg_top": ["background_top"],
    "bg_bottom": ["background_bottom"],
}


def test_fusion_net_matches_the_authors():
    case = load_case("fusion-net")
    styles = PlainStyles("rosinality-256")
    s0, s1, sc = (styles.code(case[f"z{i}"], case["mean_latent"], 0.5) for i in range(3))
    with init_empty_weights():
        fusion = FusionHierarchy("church", styles.conv_sizes, styles.rgb_sizes)
    fusion.load_state_dict(rename_fusion_net(draw_weights("stylefusion", "fusion-net"), "all"), assign=True)
    for mode, codes in {"full": (s0, s1, sc), "only_common": (s0, None, sc), "only_segments": (s0, s1, None)}.items():
        with torch.no_grad():
            fused = fusion.blend("all", *codes).split(fusion.spec.sizes, 1)
        conv, rgb = style_vectors(case, f"{mode}.")
        for i, (given, expected) in enumerate(zip(fused, conv + rgb, strict=True)):
            assert relative_error(given, expected) < 1e-5, (mode, i)


@pytest.mark.parametrize(("domain", "generator"), [("church", 256), ("car", 512), ("ffhq", 1024)])
def test_hierarchy_matches_the_authors(domain, generator):
    case, facts = load_case(f"hierarchy-{domain}"), manifest("stylefusion")["cases"][f"hierarchy-{domain}"]
    styles = PlainStyles(f"rosinality-{generator}")
    codes = {z: styles.code(case[z], case["mean_latent"], facts["truncation"]) for z in ("z0", "z1", "z2")}
    with init_empty_weights():
        fusion = FusionHierarchy(domain, styles.conv_sizes, styles.rgb_sizes)
    assert set(fusion.tree.nodes) == set(facts["active_parts"])
    assert set(fusion.tree.fused) == set(facts["nets"])
    for node in facts["nets"]:  # one net at a time: each has 36.9 M parameters
        published = draw_weights("stylefusion", f"{domain}/{node}")
        fusion.load_state_dict(rename_fusion_net(published, node), strict=False, assign=True)
    calls = []
    for call in facts["calls"]:
        set_by_call = {node: codes[z] for part, z in call.items() for node in PARTS[part]}
        calls.append({node: set_by_call.get(node, codes["z0"]) for node in fusion.tree.nodes})
    with torch.no_grad():  # all calls as one batch, and one by itself
        fused = fusion.fuse({node: torch.cat([call[node] for call in calls]) for node in fusion.tree.nodes})
        single = fusion.fuse(calls[1])
    assert relative_error(fused[1:2], single) < 1e-5
    for i in range(len(calls)):
        conv, rgb = style_vectors(case, f"call{i}.")
        for v, (given, expected) in enumerate(
            zip(fused[i : i + 1].split(fusion.spec.sizes, 1), conv + rgb, strict=True)
        ):
            assert relative_error(given, expected) < 1e-5, (i, v)


def test_renaming_rejects_what_is_no_fusion_net():
    state = {f"{b}.disentangle_net.0.weight": torch.zeros(1) for b in ("blender_segments", "blender_common")}
    assert set(rename_fusion_net({"state_dict": state}, "half")) == {
        f"nets.net_half.{b}.layers.0.weight" for b in ("blender_segments", "blender_common")
    }
    with pytest.raises(ValueError, match=r"unknown tensor 'conv1\.weight'"):
        rename_fusion_net(state | {"conv1.weight": torch.zeros(1)}, "all")
    with pytest.raises(ValueError, match="'face' has no blender_common"):
        rename_fusion_net({"blender_segments.disentangle_net.0.weight": torch.zeros(1)}, "face")


# ----------------------------------------------------------------------------------------------------
# The fast path and the plain reference.


@pytest.mark.parametrize("mode", ["full", "only_common", "only_segments"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        ODD,
        ODD | {"pooling": "mean", "shared_indicators": False},
        {"conv_sizes": [8, 8], "rgb_sizes": [8], "final_activation": "linear"},
        {"gate_bias": True, "pooling": "mean"},
        {"common_conv_layers": 99, "common_rgb_layers": 0, "hidden_layers": 1, "shared_indicators": False},
        {"common_conv_layers": 0, "common_rgb_layers": 0},
        {"rgb_sizes": [], "gate_bias": True, "final_activation": "linear"},
        ODD | {"pooling": "mean", "standardise": True},
        ODD | {"pooling": "mean", "standardise": True, "gate_product": True, "gate_bias": True},
        {"gate_product": True, "final_activation": "linear"},
        ODD | {"gate_novelty": True, "standardise": True, "gate_bias": True},
        {"gate_product": True, "gate_novelty": True, "final_activation": "linear", "pooling": "mean"},
        {"gate_product": True, "gate_bias": True, "final_activation": "linear", "output_rank": 3},
        {"output_rank": 2},
        {"input_rank": 3},
        {"gate_bias": True, "final_activation": "linear", "input_rank": 2, "output_rank": 3},
        {"context_width": 3},
        ODD | {"pooling": "mean", "standardise": True, "gate_novelty": True, "context_width": 5, "input_rank": 3},
    ],
    ids=str,
)
def test_fast_path_equals_reference_in_values_and_gradients(changes, mode):
    fusion = small("all*(a, b)", **changes).double()
    given = [code.double().requires_grad_() for code in draw_codes(fusion).values()]  # all, a, b
    common, s0, s1 = (
        (given[0] if mode != "only_segments" else None),
        given[1],
        (given[2] if mode != "only_common" else None),
    )
    inputs = [*given, *fusion.parameters()]
    results, statistics = [], None
    if fusion.spec.standardise:
        fusion.set_statistics(torch.randn(9, fusion.style_width) * torch.rand(fusion.style_width) * 3 + 1)
        statistics = (fusion.layout.mean, fusion.layout.deviation)
    context = fusion.layout.context and fusion.layout.context.weight
    plain = fuse_reference(fusion.net("all"), fusion.spec, s0, s1, common, statistics, context)
    for fused in (fusion.blend("all", s0, s1, common), plain):
        weights = torch.linspace(-1, 2, fused.numel(), dtype=fused.dtype).view_as(fused)
        gradients = torch.autograd.grad((fused * weights).sum(), inputs, materialize_grads=True)
        results.append([fused, *gradients])
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)


def test_standardised_nets_do_not_depend_on_the_units_of_a_code(tmp_path):
    fusion = small("all*(a, b)", standardise=True)
    codes = draw_codes(fusion, 4)
    scale, shift = torch.rand(fusion.style_width) + 0.5, torch.randn(fusion.style_width)
    samples = torch.randn(50, fusion.style_width)
    fusion.set_statistics(samples)
    gate = fusion.gates(codes)["all"]
    fusion.save_pretrained(tmp_path)
    loaded = FusionHierarchy.from_pretrained(tmp_path)
    assert torch.equal(loaded.gates(codes)["all"], gate)  # the statistics travel with the weights
    assert torch.equal(loaded.fuse(dict.fromkeys(codes, codes["a"])), codes["a"])
    fusion.set_statistics(samples * scale + shift)
    again = fusion.gates({n: c * scale + shift for n, c in codes.items()})["all"]
    torch.testing.assert_close(again, gate, atol=1e-4, rtol=1e-3)
    with pytest.raises(ValueError, match="at least two codes"):
        fusion.set_statistics(samples[:, 1:])
    with pytest.raises(ValueError, match="standardise=False"):
        small().set_statistics(samples)


def test_with_a_context_a_gate_depends_on_all_layers(tmp_path):
    codes, other = draw_codes(small("all*(a, b)"), 3), draw_codes(small("all*(a, b)"), 3, seed=7)
    last = slice(-SMALL["rgb_sizes"][-1], None)
    mixed = {name: torch.cat([other[name][:, : last.start], codes[name][:, last]], 1) for name in codes}
    for width in (None, 3):
        fusion = small("all*(a, b)", context_width=width)
        same = torch.allclose(fusion.gates(codes)["all"][:, last], fusion.gates(mixed)["all"][:, last])
        assert same == (width is None)
        assert torch.equal(fusion.fuse(dict.fromkeys(codes, codes["a"])), codes["a"])
    fusion.save_pretrained(tmp_path)
    assert torch.equal(FusionHierarchy.from_pretrained(tmp_path).fuse(codes), fusion.fuse(codes))


def test_gates_know_signs_and_novelty_in_any_precision():
    d = torch.tensor([-300.0, -1.0, 0.0, 1.0, 300.0])
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        found = signed(torch.zeros(5, dtype=dtype), d.to(dtype)).float()
        torch.testing.assert_close(found, torch.tensor([-1.0, -(0.5**0.5), 0.0, 0.5**0.5, 1.0]), atol=5e-3, rtol=0)
    common, other = torch.zeros(1), torch.full((1,), 2.0)
    assert [float(novelty(a, b, common)) for a, b in ((common, common), (other, other))] == [0.0, 0.0]
    assert float(novelty(common, other, common)) > 0.99
    assert float(novelty(other, common, common)) < -0.99
    assert float(company(other, common, common)) < 0.01  # alone: a region was swapped
    assert float(company(common, other, common)) > 0.99
    assert float(company(other, -other, common)) == 0.5


def test_constant_gates_without_common_vectors():
    fusion = small("all*(a, b)", gate_bias=True, common_conv_layers=0, common_rgb_layers=0)
    fusion.set_constant_gates("all", segments=0.5, common=0.1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        fusion.set_constant_gates("all", segments=1.0)


def test_gradients_are_those_of_finite_differences():
    fusion = small("all*(a, b)", **ODD, pooling="mean", hidden_width=5).double()
    given = tuple(code.double().requires_grad_() for code in draw_codes(fusion, 1).values())
    assert torch.autograd.gradcheck(lambda common, s0, s1: fusion.blend("all", s0, s1, common), given)


def test_sample_of_a_batch_equals_its_single_run():
    fusion = small()
    codes = draw_codes(fusion, 5)
    fused = fusion.fuse(codes)
    for i in range(5):
        torch.testing.assert_close(
            fusion.fuse({n: c[i : i + 1] for n, c in codes.items()}), fused[i : i + 1], rtol=1e-5, atol=1e-5
        )


def test_batch_of_one_repeats():
    fusion = small()
    codes = draw_codes(fusion, 3) | draw_codes(fusion, 1, seed=2, names=["hair", "all"])
    torch.testing.assert_close(fusion.fuse(codes), fusion.fuse({n: c.expand(3, -1) for n, c in codes.items()}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("changes", [{}, ODD | {"pooling": "mean"}, ODD], ids=str)
def test_equal_codes_give_that_code_out_exactly(dtype, changes):
    fusion = small(**changes).to(dtype)
    code = torch.randn(4, fusion.style_width).to(dtype) * 3
    codes = dict.fromkeys(fusion.tree.nodes, code)
    assert torch.equal(fusion.fuse(codes), code)
    leaves = dict.fromkeys(fusion.tree.leaves, code)
    assert torch.equal(fusion.fuse(leaves), code)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reduced_precision(dtype):
    fusion = small()
    codes = draw_codes(fusion)
    expected = fusion.fuse(codes)
    mixed = fusion.to(dtype).fuse(codes)  # float32 codes through 16-bit nets
    assert mixed.dtype == torch.float32
    assert relative_error(mixed, expected) < 0.1
    low = fusion.fuse({name: code.to(dtype) for name, code in codes.items()})
    assert low.dtype == dtype
    assert relative_error(low.float(), expected) < 0.1


# ----------------------------------------------------------------------------------------------------
# The tree.


def test_nodes_without_net_or_with_a_childless_code_give_their_own_code():
    fusion = small("all*(face(mouth, skin), hair)")
    codes = draw_codes(fusion)
    expected = fusion.blend("all", codes["face"], codes["hair"], codes["all"])
    assert torch.equal(fusion.fuse(codes), expected)  # face has no net: mouth and skin play no part
    assert list(fusion.gates(codes)) == ["all"]
    fusion = small()
    codes = draw_codes(fusion)
    assert torch.equal(fusion.fuse({"all": codes["all"], "hair": codes["hair"]}), codes["all"])
    partial = {n: c for n, c in codes.items() if n != "mouth"}
    assert torch.equal(fusion.fuse(partial), fusion.blend("all", codes["face"], codes["hair"], codes["all"]))


def test_a_node_without_code_is_fused_from_its_children_alone():
    fusion = small()
    codes = draw_codes(fusion)
    leaves = {n: codes[n] for n in fusion.tree.leaves}
    face = fusion.blend("face", codes["mouth"], codes["skin"], None)
    assert torch.equal(fusion.fuse(leaves), fusion.blend("all", face, codes["hair"], None))


def test_gates_reproduce_the_blend():
    fusion = small("all*(a, b)")
    codes = draw_codes(fusion)
    codes.pop("all")
    fused, gates = fusion.fuse_with_gates(codes)
    gate = gates["all"]
    assert gate.shape == fused.shape
    assert 0 <= gate.min() < gate.max() <= 1
    torch.testing.assert_close(codes["a"] + gate * (codes["b"] - codes["a"]), fused)
    assert torch.equal(fusion.gates(codes)["all"], gate)


def test_forward_returns_an_output_class_or_a_tuple():
    fusion = small()
    codes = draw_codes(fusion)
    assert torch.equal(fusion(codes).style_codes, fusion(codes, return_dict=False)[0])
    assert torch.equal(fusion(codes)["style_codes"], fusion.fuse(codes))
    assert fusion(codes).gates is None
    fused, gates = fusion(codes, output_gates=True, return_dict=False)
    assert torch.equal(fused, fusion.fuse(codes))
    assert all(torch.equal(gate, fusion.gates(codes)[name]) for name, gate in gates.items())


def test_fuse_is_one_graph():
    fusion, compiled = small(**ODD), []
    codes = draw_codes(fusion)

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    with torch.no_grad():
        torch.testing.assert_close(
            torch.compile(fusion.fuse, backend=backend, fullgraph=True)(codes), fusion.fuse(codes)
        )
    assert len(compiled) == 1


def test_region_names_that_modules_use_themselves():
    fusion = small("type*(half*(train, items), to)")
    codes = draw_codes(fusion)
    assert fusion.fuse(codes).shape == codes["to"].shape
    assert {key.split(".")[1] for key in fusion.state_dict()} == {"net_type", "net_half"}


def test_constant_gates():
    torch.manual_seed(0)
    fusion = FusionHierarchy("all*(a, b)", **(SMALL | {"gate_bias": True, "final_activation": "linear"}))
    codes = draw_codes(fusion)
    torch.testing.assert_close(fusion.gates(codes)["all"], torch.full((2, fusion.style_width), 0.5))
    wanted = torch.linspace(0.1, 0.9, fusion.style_width)
    fusion.set_constant_gates("all", segments=wanted, common=0.25)
    torch.testing.assert_close(fusion.gates(codes)["all"], wanted.expand(2, -1))
    aligned = fusion.blend("all", codes["a"], None, codes["all"])
    first = slice(0, sum(SMALL["conv_sizes"][:3]))
    torch.testing.assert_close(aligned[:, first], (0.75 * codes["a"] + 0.25 * codes["all"])[:, first])
    fusion.fuse(codes).sum().backward()
    last = fusion.net("all").blender_segments.layers[-1]
    assert last.weight.grad.abs().max() > 0
    for wrong in (1.0, torch.full((3,), 0.5)):
        with pytest.raises(ValueError, match="a constant gate must be one number or"):
            fusion.set_constant_gates("all", segments=wrong)
    with pytest.raises(ValueError, match="gate_bias=False"):
        small("all*(a, b)").set_constant_gates("all", common=0.5)


# ----------------------------------------------------------------------------------------------------
# Bad input: one clear error each.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"padded_width": 4}, "must be widths from 1 to padded_width=4"),
        ({"conv_sizes": [], "rgb_sizes": []}, "must be widths from 1"),
        ({"num_indicators": 5}, "num_indicators=5 is too small for 5 conv and 3 rgb.*at least 6"),
        ({"num_indicators": 7, "shared_indicators": False}, "at least 8"),
        ({"hidden_layers": 0}, "hidden_layers=0 must be at least 1"),
        ({"common_conv_layers": -1}, "common_conv_layers is an integer from 0 to 1024, got -1"),
        ({"input_rank": 99}, "input_rank=99 must be at most hidden_width="),
        ({"output_rank": 9}, "output_rank=9 must be at most padded_width=8"),
        ({"output_rank": 0}, "output_rank=0 must be at least 1"),
        ({"context_width": 0}, "context_width=0 must be at least 1"),
        ({"final_activation": "relu"}, "final_activation='relu' must be one of lrelu, linear"),
        ({"lr_multiplier": 0}, "lr_multiplier=0 must be positive"),
        ({"tree": "all*(a*, b)"}, "the leaf 'a' cannot be fused"),
    ],
)
def test_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        FusionHierarchy(**({"tree": "church"} | SMALL | changes))


def test_bad_codes():
    fusion = small()
    codes, width = draw_codes(fusion), fusion.style_width
    for changed, message in (
        ({"hiar": codes["hair"]}, "unknown region 'hiar'.*did you mean 'hair'"),
        ({"hair": codes["hair"][:, 1:]}, rf"'hair' has shape \(2, {width - 1}\); expected \(batch, {width}\)"),
        ({"hair": codes["hair"][0]}, rf"'hair' has shape \({width},\); expected"),
        ({"hair": codes["hair"].double()}, "'hair' is torch.float64 on cpu, that of 'all' is torch.float32"),
        ({"hair": torch.zeros(3, width)}, "'all' and 'hair' have batch sizes 2 and 3"),
        ({"hair": torch.zeros(0, width)}, "batch sizes 0 and 2"),
    ):
        with pytest.raises(ValueError, match=message):
            fusion.fuse(codes | changed)
    with pytest.raises(ValueError, match="must be a tensor of floating-point numbers"):
        fusion.fuse({name: code.long() for name, code in codes.items()})
    with pytest.raises(ValueError, match="codes are on meta, the fusion nets on cpu"):
        fusion.fuse({name: code.to("meta") for name, code in codes.items()})
    with pytest.raises(ValueError, match="no code for 'hair', which has no fusion net; codes are given for face"):
        fusion.fuse({"face": codes["face"]})
    with pytest.raises(ValueError, match="no codes were given"):
        fusion.fuse({})
    with pytest.raises(ValueError, match="'hair' has no fusion net; nodes with a net: all, face"):
        fusion.net("hair")
    with pytest.raises(ValueError, match="a second child's code, a common code, or both"):
        fusion.blend("all", codes["hair"], None, None)
