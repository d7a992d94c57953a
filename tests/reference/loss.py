"""MSN's loss as the paper writes it, in loops over plain probabilities."""

import math


def assignment(
    feature: list[float], prototypes: list[list[float]], temperature: float
) -> list[float]:
    def cosine(a: list[float], b: list[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / (math.hypot(*a) * math.hypot(*b))

    weights = [math.exp(cosine(feature, prototype) / temperature) for prototype in prototypes]
    return [weight / sum(weights) for weight in weights]


def sharpen(p: list[float], temperature: float) -> list[float]:
    powers = [value ** (1 / temperature) for value in p]
    return [power / sum(powers) for power in powers]


def sinkhorn(rows: list[list[float]], iterations: int) -> list[list[float]]:
    images, prototypes = len(rows), len(rows[0])
    total = sum(map(sum, rows))
    q = [[value / total for value in row] for row in rows]
    for _ in range(iterations):
        for k in range(prototypes):
            mass = sum(row[k] for row in q)
            for row in q:
                row[k] /= mass * prototypes
        for row in q:
            mass = sum(row)
            row[:] = [value / (mass * images) for value in row]
    return [[value / sum(row) for value in row] for row in q]


def msn(
    anchors: list[list[float]],
    targets: list[list[float]],
    prototypes: list[list[float]],
    prior: list[float],
    *,
    temperature: float,
    sharpening: float,
    sinkhorn_iterations: int,
    memax_weight: float,
    ent_weight: float,
) -> float:
    p = [assignment(row, prototypes, temperature) for row in anchors]
    t = [sharpen(assignment(row, prototypes, temperature), sharpening) for row in targets]
    if sinkhorn_iterations:
        t = sinkhorn(t, sinkhorn_iterations)
    cross_entropy = 0.0
    for i, row in enumerate(p):
        for k, value in enumerate(row):
            cross_entropy -= t[i % len(t)][k] * math.log(value) / len(p)
    mean = [sum(row[k] for row in p) / len(p) for k in range(len(prior))]
    divergence = sum(m * math.log(m / q) for m, q in zip(mean, prior, strict=True))
    entropy = -sum(value * math.log(value) for row in p for value in row) / len(p)
    return cross_entropy + memax_weight * divergence + ent_weight * entropy
