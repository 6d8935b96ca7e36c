"""The gpt-oss architecture in PyTorch, as small as it is trained here: the same parts, written for training.

Sinks are met by one more key and value of zeros; experts see the rows that chose them; MXFP4 rounding of the experts
can be switched on, with gradients that pass through it unchanged.
"""
import math

import torch
from torch import nn
from torch.nn import functional

import mxfp4
import shape

POSITIONS = 4096  # of the tables of angles: the longest sequence


def yarn_tables(positions):
    """cos and sin [positions, head_dim / 2], times YaRN's concentration; bounds of the ramp are not rounded."""
    half, base = shape.HEAD_DIM // 2, float(shape.ROPE_THETA)

    def dimension(rotations):
        """The pair of dimensions that turns so often over the original context."""
        return half * math.log(shape.ORIGINAL_POSITIONS / (rotations * 2 * math.pi)) / math.log(base)

    low, high = dimension(shape.BETA_FAST), dimension(shape.BETA_SLOW)
    wavelength = base ** (torch.arange(0, shape.HEAD_DIM, 2).float() / shape.HEAD_DIM)
    keep = 1 - ((torch.arange(half).float() - low) / (high - low)).clamp(0, 1)
    frequency = (1 / (shape.YARN_FACTOR * wavelength)) * (1 - keep) + (1 / wavelength) * keep
    angles = torch.arange(positions).float()[:, None] * frequency[None]
    concentration = 0.1 * math.log(shape.YARN_FACTOR) + 1.0
    return angles.cos() * concentration, angles.sin() * concentration


def attention_mask(length, sliding, sinks):
    """[heads, length, length + 1], added to the scores; the last column is the sink."""
    query, key = torch.arange(length).view(length, 1), torch.arange(length).view(1, length)
    visible = key <= query
    if sliding:
        visible &= key > query - shape.WINDOW
    mask = torch.zeros(length, length).masked_fill(~visible, float("-inf")).expand(shape.HEADS, length, length)
    return torch.cat([mask, sinks.view(-1, 1, 1).expand(-1, length, 1)], -1)


def rotate(x, cos, sin):
    """RoPE on x [batch, length, heads, head_dim], halves paired."""
    first, second = x.chunk(2, -1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class Attention(nn.Module):
    def __init__(self, sliding):
        super().__init__()
        query_width, kv_width = shape.HEADS * shape.HEAD_DIM, shape.KV_HEADS * shape.HEAD_DIM
        self.q_proj = nn.Linear(shape.HIDDEN, query_width)
        self.k_proj = nn.Linear(shape.HIDDEN, kv_width)
        self.v_proj = nn.Linear(shape.HIDDEN, kv_width)
        self.o_proj = nn.Linear(query_width, shape.HIDDEN)
        # Drawn once and kept: the rest of the model learns around them.
        self.register_buffer("sinks", (torch.rand(shape.HEADS) * 3 - 1).bfloat16().float())
        self.sliding = sliding
        self.masks = {}  # by length and type

    def mask(self, length, dtype):
        if (length, dtype) not in self.masks:
            self.masks[length, dtype] = attention_mask(length, self.sliding, self.sinks).to(dtype)[None]
        return self.masks[length, dtype]

    def forward(self, x, cos, sin):
        batch, length, _ = x.shape

        def heads(y, count):
            return y.view(batch, length, count, shape.HEAD_DIM)

        def with_sink(y):
            """A KV head for every query head, and the zeros that the sink meets."""
            y = y.repeat_interleave(shape.HEADS // shape.KV_HEADS, 2).transpose(1, 2)
            return functional.pad(y, (0, 0, 0, 1))

        q = rotate(heads(self.q_proj(x), shape.HEADS), cos, sin)
        k = rotate(heads(self.k_proj(x), shape.KV_HEADS), cos, sin)
        v = heads(self.v_proj(x), shape.KV_HEADS)
        y = functional.scaled_dot_product_attention(q.transpose(1, 2), with_sink(k), with_sink(v),
                                                    attn_mask=self.mask(length, q.dtype))
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))


def rounded(weights):
    """weights as MXFP4 would hold them; the gradient passes as if nothing had happened."""
    with torch.no_grad():
        stored = mxfp4.dequantize(*mxfp4.quantize(weights, torch), torch)
    return weights + (stored - weights).detach()


class Experts(nn.Module):
    """Router and experts. gate_up [experts, 2 * width, hidden] has gate and up rows in turns."""

    def __init__(self):
        super().__init__()
        count, width = shape.EXPERTS, shape.EXPERT_WIDTH
        self.router = nn.Linear(shape.HIDDEN, count)
        self.gate_up = nn.Parameter(torch.randn(count, 2 * width, shape.HIDDEN) * 0.02)
        self.gate_up_bias = nn.Parameter(torch.zeros(count, 2 * width))
        self.down = nn.Parameter(torch.randn(count, shape.HIDDEN, width) * 0.02)
        self.down_bias = nn.Parameter(torch.zeros(count, shape.HIDDEN))
        self.rounding = False

    def expert(self, x, gate_up, gate_up_bias, down, down_bias):
        gate, up = functional.linear(x, gate_up, gate_up_bias).view(-1, shape.EXPERT_WIDTH, 2).unbind(-1)
        gate, up = gate.clamp(max=shape.SWIGLU_LIMIT), up.clamp(-shape.SWIGLU_LIMIT, shape.SWIGLU_LIMIT)
        return functional.linear((up + 1) * (gate * torch.sigmoid(shape.SWIGLU_ALPHA * gate)), down, down_bias)

    def forward(self, x):
        """Returns the output and the load-balancing loss (1 when the experts are used evenly)."""
        tokens = x.reshape(-1, shape.HIDDEN)
        scores = self.router(tokens).float()
        best, chosen = scores.topk(shape.ACTIVE, -1)
        weights = best.softmax(-1)
        gate_up = rounded(self.gate_up) if self.rounding else self.gate_up
        down = rounded(self.down) if self.rounding else self.down

        chosen = chosen.reshape(-1)
        by_expert = chosen.argsort(stable=True)
        counts = torch.bincount(chosen, minlength=shape.EXPERTS)
        rows = by_expert // shape.ACTIVE
        parts = [self.expert(part, *(p.to(x.dtype) for p in parameters)) for part, *parameters in
                 zip(tokens[rows].split(counts.tolist()), gate_up, self.gate_up_bias, down, self.down_bias)]
        weighted = torch.cat(parts) * weights.reshape(-1)[by_expert].unsqueeze(-1).to(x.dtype)
        out = torch.zeros_like(tokens).index_add_(0, rows, weighted)

        share = counts.float() / chosen.numel()
        balance = shape.EXPERTS * (scores.softmax(-1).mean(0) * share).sum()
        return out.view(x.shape), balance


class RmsNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape.HIDDEN))

    def forward(self, x):
        t = x.float()
        return (t * torch.rsqrt(t.pow(2).mean(-1, keepdim=True) + shape.EPSILON) * self.weight).to(x.dtype)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        layers = range(shape.LAYERS)
        self.embedding = nn.Embedding(shape.VOCABULARY, shape.HIDDEN)
        self.head = nn.Linear(shape.HIDDEN, shape.VOCABULARY, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.5)
        nn.init.normal_(self.head.weight, std=0.02)
        self.attention_norm = nn.ModuleList([RmsNorm() for _ in layers])
        self.experts_norm = nn.ModuleList([RmsNorm() for _ in layers])
        self.attention = nn.ModuleList([Attention(shape.is_sliding(i)) for i in layers])
        self.experts = nn.ModuleList([Experts() for _ in layers])
        self.norm = RmsNorm()
        cos, sin = yarn_tables(POSITIONS)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, ids):
        """ids [batch, length] -> logits [batch, length, vocabulary] and the mean load-balancing loss."""
        length = ids.shape[1]
        cos, sin = (table[:length].view(1, length, 1, -1) for table in (self.cos, self.sin))
        x, balance = self.embedding(ids), 0.0
        for i in range(shape.LAYERS):
            x = x + self.attention[i](self.attention_norm[i](x), cos, sin)
            y, layer_balance = self.experts[i](self.experts_norm[i](x))
            x, balance = x + y, balance + layer_balance
        return self.head(self.norm(x)), balance / shape.LAYERS

    def round_experts(self):
        for experts in self.experts:
            experts.rounding = True

    def weights(self):
        """float32 NumPy arrays by their Hugging Face names, as checkpoint.write takes them."""
        named = {"model.embed_tokens.weight": self.embedding.weight, "lm_head.weight": self.head.weight,
                 "model.norm.weight": self.norm.weight}
        for i in range(shape.LAYERS):
            layer, attention, experts = f"model.layers.{i}.", self.attention[i], self.experts[i]
            named[layer + "input_layernorm.weight"] = self.attention_norm[i].weight
            named[layer + "post_attention_layernorm.weight"] = self.experts_norm[i].weight
            named[layer + "self_attn.sinks"] = attention.sinks
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                named[f"{layer}self_attn.{name}.weight"] = getattr(attention, name).weight
                named[f"{layer}self_attn.{name}.bias"] = getattr(attention, name).bias
            named[layer + "mlp.router.weight"] = experts.router.weight
            named[layer + "mlp.router.bias"] = experts.router.bias
            for name in ("gate_up", "down"):
                named[f"{layer}mlp.experts.{name}_proj"] = getattr(experts, name)
                named[f"{layer}mlp.experts.{name}_proj_bias"] = getattr(experts, name + "_bias")
        return {name: value.detach().numpy() for name, value in named.items()}
