#!/usr/bin/env python3
"""Makes the `stories` checkpoint: a small gpt-oss that speaks the harmony format.

    python3 train.py tokenizer BOOKS OUT                                  OUT/tokenizer.json
    python3 train.py train BOOKS OUT --minutes 78 --batch 16 --bf16       OUT/model.pt
    python3 train.py export OUT                                           the other files of a Hugging Face folder

BOOKS is a text file (or .xz) of public-domain children's books; the conversations come from corpus.py. PyTorch, NumPy
and `tokenizers` must be installed. How far a training gets in its minutes depends on the machine, so weights come
out alike and not equal; the tokenizer comes out equal from equal books.

The experts are rounded to MXFP4 in the forward pass from --quant-at on, so that what is exported is what was trained.
A twin in BF16 starts from the state before the rounding:

    mkdir TWIN && cp OUT/tokenizer.json OUT/train.npy OUT/eval.npy TWIN
    python3 train.py train BOOKS TWIN --init OUT/model-before-rounding.pt --hold 0 --peak 0.82 --quant-at 2 \\
        --minutes 30 --seed 77 --batch 16 --bf16
    python3 train.py export TWIN --plain
"""
import argparse
import os
import time

import numpy

import checkpoint
import data

WINDOW = 512           # tokens of one training example
BALANCE_WEIGHT = 0.01  # of the load-balancing loss
MOMENTUM = 0.95
EVALUATED = 200        # windows of the evaluation set


def in_folder(options, name):
    return os.path.join(options.out, name)


def make_tokenizer(options):
    tokenizer = data.train_tokenizer(data.read_books(options.books))
    os.makedirs(options.out, exist_ok=True)
    tokenizer.save(in_folder(options, "tokenizer.json"))
    print("tokens in the vocabulary:", tokenizer.get_vocab_size())


def training_ids(options):
    """The encoded documents, made at the first call and kept in OUT."""
    if not os.path.exists(in_folder(options, "train.npy")):
        training, evaluation = data.encode_documents(data.load_tokenizer(options.out), data.read_books(options.books))
        numpy.save(in_folder(options, "eval.npy"), evaluation)
        numpy.save(in_folder(options, "train.npy"), training)
    return numpy.load(in_folder(options, "train.npy"), mmap_mode="r"), numpy.load(in_folder(options, "eval.npy"))


def batches(ids, size, seed):
    """Endless batches [size, WINDOW + 1] in random order; the order is drawn anew whenever the windows run out."""
    windows, step, position = (len(ids) - 1) // WINDOW, 0, 0
    order = numpy.random.default_rng(seed).permutation(windows)
    while True:
        if position + size > windows:
            position, order = 0, numpy.random.default_rng(seed + step).permutation(windows)
        yield numpy.stack([ids[i * WINDOW:(i + 1) * WINDOW + 1] for i in order[position:position + size]])
        position += size
        step += 1


def rate_scale(step, progress, hold, peak):
    """Learning rate as a part of the full one: 60 steps of warm-up, `peak` until `hold` of the time, then down to 3 %."""
    decay = 1.0 if progress < hold else max(0.03, (1 - progress) / (1 - hold))
    return min(1, (step + 1) / 60) * peak * decay


def orthogonalized(gradient):
    """The update of Muon (Keller Jordan, 2024): five Newton-Schulz steps towards the nearest orthogonal matrix."""
    x = gradient.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    if tall:
        x = x.mT
    return x.to(gradient.dtype) * max(1, gradient.shape[-2] / gradient.shape[-1]) ** 0.5


class Optimizer:
    """Muon for the matrices of attention and experts, AdamW for embedding, head, router, biases and norms."""

    def __init__(self, model, adam_rate, muon_rate):
        import torch
        self.adam_rate, self.muon_rate = adam_rate, muon_rate
        self.matrices, self.others = [], []
        for name, parameter in model.named_parameters():
            is_matrix = parameter.ndim >= 2 and not name.startswith(("embedding", "head")) \
                and "router" not in name and not name.endswith("_bias")
            (self.matrices if is_matrix else self.others).append(parameter)
        self.adam = torch.optim.AdamW(self.others, lr=adam_rate, betas=(0.9, 0.98), weight_decay=0.0)
        self.momentum = [torch.zeros_like(p) for p in self.matrices]

    def step(self, scale):
        import torch
        for group in self.adam.param_groups:
            group["lr"] = self.adam_rate * scale
        torch.nn.utils.clip_grad_norm_(self.others, 1.0)
        self.adam.step()
        with torch.no_grad():
            for parameter, momentum in zip(self.matrices, self.momentum):
                momentum.mul_(MOMENTUM).add_(parameter.grad)
                update = orthogonalized(parameter.grad.add(momentum, alpha=MOMENTUM))
                parameter.mul_(1 - 0.002 * scale).add_(update, alpha=-self.muon_rate * scale)
        for parameter in self.matrices + self.others:
            parameter.grad = None


def loss_of(model, ids, bf16):
    """Cross-entropy of the next tokens and the load-balancing loss, of ids [batch, length + 1]."""
    import torch
    ids = torch.from_numpy(ids.astype(numpy.int64))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits, balance = model(ids[:, :-1])
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten()), balance


def evaluate(model, ids):
    """Mean cross-entropy in nats a token."""
    import torch
    model.eval()
    starts = range(0, min(len(ids) - 1, EVALUATED * WINDOW) - WINDOW, WINDOW)
    with torch.no_grad():
        losses = [loss_of(model, ids[None, i:i + WINDOW + 1], False)[0].item() for i in starts]
    return sum(losses) / len(losses)


def train(options):
    import torch
    from model import Model
    torch.manual_seed(1)
    torch.set_num_threads(options.threads)
    training, evaluation = training_ids(options)
    model = Model()
    if options.init:
        model.load_state_dict(torch.load(options.init))
    print("parameters:", sum(p.numel() for p in model.parameters()))
    optimizer = Optimizer(model, options.lr, options.muon)
    state_file, rounding = in_folder(options, "model.pt"), False
    start = time.time()
    for step, ids in enumerate(batches(training, options.batch, options.seed)):
        elapsed = time.time() - start
        progress = elapsed / 60 / options.minutes
        if progress > 1:
            break
        if progress >= options.quant_at and not rounding:
            torch.save(model.state_dict(), in_folder(options, "model-before-rounding.pt"))
            model.round_experts()
            rounding = True
        loss, balance = loss_of(model, ids, options.bf16)
        (loss + BALANCE_WEIGHT * balance).backward()
        optimizer.step(rate_scale(step, progress, options.hold, options.peak))
        if (step + 1) % 20 == 0:
            rate = (step + 1) * options.batch * WINDOW / (time.time() - start)
            print(f"{elapsed / 60:6.1f} min  step {step + 1}  loss {loss.item():.3f}  balance {balance.item():.3f}  "
                  f"{rate:.0f} tokens/s", flush=True)
        if (step + 1) % 200 == 0:
            torch.save(model.state_dict(), state_file)
    torch.save(model.state_dict(), state_file)
    print(f"{step} steps; {evaluate(model, evaluation):.4f} nats a token on the evaluation set")


def export(options):
    import torch
    from model import Model
    model = Model()
    model.load_state_dict(torch.load(in_folder(options, "model.pt")))
    print("bytes of tensors:", checkpoint.write(options.out, model.weights(), options.plain))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name, run, text, books=True):
        command = commands.add_parser(name, help=text, description=text,
                                      formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        command.set_defaults(run=run)
        if books:
            command.add_argument("books", metavar="BOOKS", help="text file or .xz")
        command.add_argument("out", metavar="OUT", help="folder of everything that is made")
        return command

    add("tokenizer", make_tokenizer, "train the byte-level BPE")
    command = add("train", train, "train the model")
    command.add_argument("--minutes", type=float, default=90, help="time to train; the schedule follows it")
    command.add_argument("--batch", type=int, default=12, help=f"windows of {WINDOW} tokens a step")
    command.add_argument("--lr", type=float, default=3e-3, help="learning rate of AdamW")
    command.add_argument("--muon", type=float, default=0.02, help="learning rate of Muon")
    command.add_argument("--peak", type=float, default=1.0, help="factor on both learning rates")
    command.add_argument("--hold", type=float, default=0.45, help="part of the time before the rates fall")
    command.add_argument("--quant-at", type=float, default=0.55, help="part of the time before MXFP4 rounding (2: never)")
    command.add_argument("--bf16", action="store_true", help="multiply in BF16")
    command.add_argument("--init", metavar="STATE", help="start from this state")
    command.add_argument("--seed", type=int, default=3, help="order of the windows")
    command.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    command = add("export", export, "write the Hugging Face folder", books=False)
    command.add_argument("--plain", action="store_true", help="BF16 experts instead of MXFP4")
    return parser.parse_args()


if __name__ == "__main__":
    options = arguments()
    options.run(options)
