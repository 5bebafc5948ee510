"""Which few steps bring singular values nearest to 1? Finds the coefficients of Muon's iteration.

python benchmarks/muon_coefficients.py --polynomials 0 --least 0.004
python benchmarks/muon_coefficients.py --polynomials 3 --no-inverse --least 0.01

A step makes x into a x + b x^3 + c x^5, or with an inverse into x (p + q / (1 + r x^2)), which comes first. The
steps differ, and are found together: Adam lowers the eighth root of the mean of log(result)^8 over singular values
from --least to 1.01, equally spaced in their logarithm; those above 1 are there because a norm is rounded.
"""

import argparse
import math

import torch

MOST, GRID, UPDATES, RATE = 1.01, 2000, 6000, 1e-2
NEWTON_SCHULZ = torch.tensor([(3.4445, -4.7750, 2.0315)] * 5)
"""Those of Jordan et al. 2024, which torch has."""


def iterate(values: torch.Tensor, inverse: torch.Tensor | None, polynomials: torch.Tensor) -> torch.Tensor:
    """Return what the steps make of singular values; `inverse` has the logarithms of p, q and r."""
    if inverse is not None:
        p, q, r = inverse.exp()
        values = values * (p + q / (1 + r * values**2))
    for a, b, c in polynomials:
        values = a * values + b * values**3 + c * values**5
    return values


def search(least: float, polynomials: int, *, with_inverse: bool) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Return the logarithms of p, q and r, [3], and the polynomials, [polynomials, 3]."""
    grid = torch.linspace(math.log(least), math.log(MOST), GRID, dtype=torch.float64).exp()
    start = [(2.0, -1.5, 0.5)] * polynomials
    if not with_inverse:
        start = [(8.0, -23.0, 17.0)] + [(3.0, -2.0, 0.5)] * (polynomials - 1)
    found = torch.tensor(start, dtype=torch.float64).view(-1, 3).requires_grad_()
    inverse = torch.tensor([0.3, 0.1 / least, 0.5 * least**-1.3], dtype=torch.float64).log().requires_grad_()
    adam = torch.optim.Adam([found, inverse], lr=RATE if with_inverse else RATE / 3)
    schedule = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, UPDATES)
    for _ in range(UPDATES):
        results = iterate(grid, inverse if with_inverse else None, found)
        adam.zero_grad()
        results.clamp(min=1e-3).log().abs().pow(8).mean().pow(1 / 8).backward()  # type: ignore[no-untyped-call]
        adam.step()
        schedule.step()
    return inverse.detach() if with_inverse else None, found.detach()


def main() -> None:
    """Print the coefficients, and what they make of singular values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--polynomials", type=int, default=0)
    parser.add_argument("--no-inverse", action="store_true")
    parser.add_argument("--least", type=float, default=0.004)
    words = parser.parse_args()
    inverse, polynomials = search(words.least, words.polynomials, with_inverse=not words.no_inverse)
    if inverse is not None:
        print("p, q, r", *(f"{value:.6f}" for value in inverse.exp().tolist()))
    for row in polynomials.tolist():
        print("a, b, c", *(f"{value:.6f}" for value in row))
    shown = torch.tensor([0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0], dtype=torch.float64)
    grid = torch.linspace(words.least, 1, 100_000, dtype=torch.float64)
    for name, steps in (("these", (inverse, polynomials)), ("torch's", (None, NEWTON_SCHULZ))):
        row = ", ".join(f"{x:g}: {y:.2f}" for x, y in zip(shown, iterate(shown, *steps), strict=True))
        made = iterate(grid, *steps)
        print(f"{name}: {made.min():.3f} to {made.max():.3f}; {row}")


if __name__ == "__main__":
    main()
