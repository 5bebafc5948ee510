// How the next token of a reply is chosen: as dialogkit chooses it, from other random numbers.

export class Sampler {
  constructor({ temperature, top_k, top_p, repetition_penalty }, seed) {
    Object.assign(this, { temperature, top_k, top_p, repetition_penalty });
    this.random = randomNumbers(seed);
    this.seen = new Set(); // the tokens of the reply alone: many answers have to name what the prompt asks about
  }

  choose(scores) {
    for (const token of this.seen) {
      scores[token] *= scores[token] < 0 ? this.repetition_penalty : 1 / this.repetition_penalty;
    }
    const token = this.temperature === 0 ? highest(scores) : this.drawn(scores);
    this.seen.add(token);
    return token;
  }

  drawn(scores) {
    let least = -Infinity;
    if (this.top_k > 0 && this.top_k < scores.length) least = scores.slice().sort()[scores.length - this.top_k];
    const kept = [];
    for (let token = 0; token < scores.length; token++) if (scores[token] >= least) kept.push(token);
    kept.sort((one, other) => scores[other] - scores[one]);
    const weights = kept.map((token) => Math.exp((scores[token] - scores[kept[0]]) / this.temperature));
    const total = weights.reduce((sum, weight) => sum + weight);
    // The most probable tokens that together have the probability `top_p`.
    let count = 0, sum = 0;
    do sum += weights[count++]; while (count < kept.length && sum < this.top_p * total);
    let drawn = this.random() * sum;
    for (let at = 0; at < count; at++) if ((drawn -= weights[at]) < 0) return kept[at];
    return kept[count - 1];
  }
}

function highest(scores) {
  let best = 0;
  for (let token = 1; token < scores.length; token++) if (scores[token] > scores[best]) best = token;
  return best;
}

// Mulberry32: small, and good enough to draw words.
function randomNumbers(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}
