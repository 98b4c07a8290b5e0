"""Auto-encoding variational Bayes and wake-sleep in about eighty lines of plain Pyro and torch.

Everything that the package does rests on what is written out here.  Run it: it trains both
algorithms on 8 x 8 digits in half a minute and prints their bounds.  A test holds the two losses
and all their gradients against the package's, at the same noise.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import nn

DATA, HIDDEN, LATENT = 64, 128, 2


class MiniVAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(DATA, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 2 * LATENT)
        )
        self.decoder = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, DATA))

    def model(self, x):  # p(z) p(x | z): how we believe the data came about
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):  # q(z | x): one network guesses the posterior of every datum
        with pyro.plate("data", len(x)):
            mean, log_variance = self.encoder(x).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(mean, (0.5 * log_variance).exp()).to_event(1))


def log_prob(trace, site):  # (B,): one number a datum, because all else is an event dimension
    return trace.nodes[site]["fn"].log_prob(trace.nodes[site]["value"])


def aevb_loss(vae, x):
    """-E_q[log p(x, z) - log q(z | x)] by one draw z = mean + sd * eps, which gradients pass."""
    guide = poutine.trace(vae.guide).get_trace(x)  # runs the guide and writes down its sites
    model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(x)  # at the guide's z
    log_p = log_prob(model, "z") + log_prob(model, "x")
    return -(log_p - log_prob(guide, "z"))


def wake_sleep_loss(vae, x):
    """Two losses that share no gradient: the model learns from data, the guide from dreams."""
    with torch.no_grad():  # wake: the guide explains the data; its guess is taken as it is ...
        awake = poutine.trace(vae.guide).get_trace(x)
    model = poutine.trace(poutine.replay(vae.model, trace=awake)).get_trace(x)
    wake = -(log_prob(model, "z") + log_prob(model, "x"))  # ... and only the model is to improve

    with torch.no_grad():  # sleep: the model dreams up latents and the data they give ...
        dream = poutine.trace(poutine.uncondition(vae.model)).get_trace(x)
    dreamt_x = dream.nodes["x"]["value"]
    guide = poutine.trace(poutine.replay(vae.guide, trace=dream)).get_trace(dreamt_x)
    sleep = -log_prob(guide, "z")  # ... and only the guide is to recognize them
    return wake + sleep


def train(vae, loss, data, steps=1500, batch_size=100, seed=0):
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adagrad(vae.parameters(), lr=0.02)
    for _ in range(steps):
        x = data[torch.randint(len(data), (batch_size,), generator=generator)]
        optimizer.zero_grad()
        loss(vae, x).sum().backward()
        optimizer.step()
    with torch.no_grad():
        return -aevb_loss(vae, data).mean().item()  # the bound, nats per datum: higher is better


if __name__ == "__main__":
    from sklearn.datasets import load_digits

    digits = torch.as_tensor(load_digits().data >= 8).float()
    for loss in (aevb_loss, wake_sleep_loss):
        torch.manual_seed(0)
        print(f"{loss.__name__:16s} bound {train(MiniVAE(), loss, digits):.2f} nats per digit")
