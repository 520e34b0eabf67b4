// The Langevin playground: x' = x - a grad E(x) + b xi on a 2D energy, drawn on a canvas.
// This module is the only source. anywidget loads it as it is, and ebmlib.playground.static_script() wraps it as a
// classic script for pages without a kernel. So: no imports, and exports only in lines that start with "export".

// ---- random numbers: xoshiro128** seeded by splitmix32, normals by Box-Muller ----

class Rng {
  constructor(seed) {
    let z = seed >>> 0;
    this.state = new Uint32Array(4).map(() => {
      z = (z + 0x9e3779b9) >>> 0;
      let t = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
      t = Math.imul(t ^ (t >>> 15), 0x735a2d97);
      return t ^ (t >>> 15);
    });
    this.spare = null;
  }

  // Uniform in (0, 1), never 0, so that its logarithm is finite.
  uniform() {
    const s = this.state;
    const rotate = (x, k) => ((x << k) | (x >>> (32 - k))) >>> 0;
    const out = Math.imul(rotate(Math.imul(s[1], 5), 7), 9) >>> 0;
    const t = s[1] << 9;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate(s[3], 11);
    return (out + 0.5) / 4294967296;
  }

  normal() {
    if (this.spare !== null) {
      const z = this.spare;
      this.spare = null;
      return z;
    }
    const r = Math.sqrt(-2 * Math.log(this.uniform()));
    const angle = 2 * Math.PI * this.uniform();
    this.spare = r * Math.sin(angle);
    return r * Math.cos(angle);
  }
}

// ---- energies: (x, n, value, grad) for n points x[0], y[0], x[1], .., written into value (n) and grad (2n) ----

// Closed forms are written for one point, (x, y, g) -> E with the gradient in g[0], g[1]; this makes a batch of them.
function pointwise(one) {
  const g = new Float64Array(2);
  return (x, n, value, grad) => {
    for (let i = 0; i < n; i++) {
      value[i] = one(x[2 * i], x[2 * i + 1], g);
      grad[2 * i] = g[0];
      grad[2 * i + 1] = g[1];
    }
  };
}

// Little-endian float32 numbers in base64, as numbers to compute with.
function decode(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return Float64Array.from(new Float32Array(bytes.buffer));
}

// Scaled complementary error function exp(x^2) erfc(x) for x >= 0: series below 2, Lentz's continued fraction above.
function erfcx(x) {
  if (x < 2) {
    let term = x;
    let sum = x;
    for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) {
      term *= (2 * x * x) / (2 * n + 1);
      sum += term;
    }
    return Math.exp(x * x) - (2 / Math.sqrt(Math.PI)) * sum;
  }
  let f = x;
  let c = x;
  let d = 0;
  for (let n = 1; n < 200; n++) {
    d = 1 / (x + (n / 2) * d);
    c = x + n / 2 / c;
    f *= c * d;
    if (Math.abs(c * d - 1) < 1e-15) break;
  }
  return 1 / (Math.sqrt(Math.PI) * f);
}

// log Q(u), the log of the standard normal's upper tail, exact far out where Q itself underflows.
function logUpperTail(u) {
  const t = Math.abs(u) / Math.SQRT2;
  const tail = Math.log(0.5 * erfcx(t)) - t * t;
  return u >= 0 ? tail : Math.log1p(-Math.exp(tail));
}

// Square lattice of equal Gaussians: a product of one mixture an axis, so 2 x 5 exponentials for 25 modes.
function lattice({ axes, std }) {
  const log = (z) => Math.log(z);
  const logNorm = axes.reduce((sum, c) => sum + log(c.length * std) + 0.5 * log(2 * Math.PI), 0);
  return (x, y, g) => {
    let value = logNorm;
    for (let d = 0; d < 2; d++) {
      const at = d === 0 ? x : y;
      let nearest = Infinity;
      for (const c of axes[d]) nearest = Math.min(nearest, Math.abs(at - c));
      let sum = 0;
      let pull = 0;
      for (const c of axes[d]) {
        const w = Math.exp((0.5 * (nearest - at + c) * (nearest + at - c)) / (std * std));
        sum += w;
        pull += w * (at - c);
      }
      g[d] = pull / (sum * std * std);
      value += (0.5 * nearest * nearest) / (std * std) - log(sum);
    }
    return value;
  };
}

// Mixture of isotropic Gaussians of one width. Terms e^-40 below the largest are left out of sum and gradient.
function mixture({ means, std, log_weights: logWeights }) {
  const m = means.length;
  const mx = Float64Array.from(means, (p) => p[0]);
  const my = Float64Array.from(means, (p) => p[1]);
  const lw = Float64Array.from(means, (_, k) => (logWeights ? logWeights[k] : -Math.log(m)));
  const u = new Float64Array(m);
  const precision = 1 / (std * std);
  const logNorm = Math.log(2 * Math.PI * std * std);
  return (x, y, g) => {
    let top = -Infinity;
    for (let k = 0; k < m; k++) {
      const dx = x - mx[k];
      const dy = y - my[k];
      u[k] = lw[k] - 0.5 * precision * (dx * dx + dy * dy);
      if (u[k] > top) top = u[k];
    }
    let sum = 0;
    let gx = 0;
    let gy = 0;
    for (let k = 0; k < m; k++) {
      if (u[k] < top - 40) continue;
      const w = Math.exp(u[k] - top);
      sum += w;
      gx += w * (x - mx[k]);
      gy += w * (y - my[k]);
    }
    g[0] = (precision * gx) / sum;
    g[1] = (precision * gy) / sum;
    return logNorm - top - Math.log(sum);
  };
}

// Uniform law on the dark cells of a checkerboard, blurred by a Gaussian of width std. Along one axis a cell's mass is
// a difference of normal distribution functions, and p(x, y) = (A(x) A(y) + B(x) B(y)) / area with A the even, B the
// odd cells. Everything is in logs, so that the energy stays right far outside the board.
function checkerboard({ half, cells, std, dark }) {
  const side = (2 * half) / cells;
  const logArea = Math.log(side * side * dark.length);
  const x1 = { mass: new Float64Array(cells), slope: new Float64Array(cells) };
  const x2 = { mass: new Float64Array(cells), slope: new Float64Array(cells) };
  const logPhi = (u) => -0.5 * u * u - 0.5 * Math.log(2 * Math.PI);

  // Log mass of each cell at coordinate c, and the derivative of that log.
  function axis(c, out) {
    for (let k = 0; k < cells; k++) {
      const lo = (c - (-half + (k + 1) * side)) / std;
      const hi = (c - (-half + k * side)) / std;
      // Use the side of the normal law on which both tails are small: no cancellation.
      const flip = lo + hi < 0;
      const near = flip ? -hi : lo;
      const far = flip ? -lo : hi;
      const a = logUpperTail(near);
      const mass = a + Math.log1p(-Math.exp(logUpperTail(far) - a));
      out.mass[k] = mass;
      out.slope[k] = (Math.exp(logPhi(hi) - mass) - Math.exp(logPhi(lo) - mass)) / std;
    }
  }

  return (x, y, g) => {
    axis(x, x1);
    axis(y, x2);
    let top = -Infinity;
    for (const [i, j] of dark) top = Math.max(top, x1.mass[i] + x2.mass[j]);
    let sum = 0;
    let gx = 0;
    let gy = 0;
    for (const [i, j] of dark) {
      const w = Math.exp(x1.mass[i] + x2.mass[j] - top);
      sum += w;
      gx += w * x1.slope[i];
      gy += w * x2.slope[j];
    }
    g[0] = -gx / sum;
    g[1] = -gy / sum;
    return logArea - top - Math.log(sum);
  };
}

// Neal's funnel: x_2 = y is normal, and so is x given y, of variance width^2 e^y. Blurred, the sharp y behind a point
// is integrated out by the exported Gauss-Hermite nodes; the sharp funnel has the one node 0.
function funnel({ spread, width, blur, nodes, log_weights: logWeights }) {
  const total = Math.hypot(spread, blur);
  const ratio = (spread / total) ** 2;
  const std = (spread * blur) / total;
  const m = nodes.length;
  const u = new Float64Array(m);
  const core = new Float64Array(m); // width^2 e^(sharp y)
  const logNorm = Math.log(2 * Math.PI * total);
  return (x, y, g) => {
    let top = -Infinity;
    for (let k = 0; k < m; k++) {
      core[k] = width * width * Math.exp(ratio * y + std * nodes[k]);
      const variance = core[k] + blur * blur;
      u[k] = logWeights[k] - 0.5 * (Math.log(variance) + (x * x) / variance);
      if (u[k] > top) top = u[k];
    }
    let sum = 0;
    let gx = 0;
    let gy = 0;
    for (let k = 0; k < m; k++) {
      const w = Math.exp(u[k] - top);
      const variance = core[k] + blur * blur;
      sum += w;
      gx += w / variance;
      gy += 0.5 * w * core[k] * (1 - (x * x) / variance) / variance;
    }
    g[0] = (x * gx) / sum;
    g[1] = y / (total * total) + (ratio * gy) / sum;
    return logNorm + 0.5 * (y / total) ** 2 - top - Math.log(sum);
  };
}

// Cubic B-spline on (n + 2)^2 coefficients: node (i, j) of [-box, box]^2 has index (i + 1, j + 1), rows along y.
// Beyond the box the point is moved to the edge; the walls there reflect, so that no particle is left outside.
function table({ n, box, coefficients }) {
  const c = decode(coefficients);
  const h = (2 * box) / (n - 1);
  const wx = new Float64Array(4);
  const dx = new Float64Array(4);
  const wy = new Float64Array(4);
  const dy = new Float64Array(4);

  // Weights of the four coefficients around a coordinate, and their derivatives; returns the first one's index.
  function weigh(at, w, d) {
    const place = Math.min(Math.max((at + box) / h, 0), n - 1);
    const first = Math.min(Math.floor(place), n - 2);
    const t = place - first;
    const s = 1 - t;
    w[0] = (s * s * s) / 6;
    w[1] = 2 / 3 - 0.5 * t * t * (1 + s);
    w[2] = 2 / 3 - 0.5 * s * s * (1 + t);
    w[3] = (t * t * t) / 6;
    d[0] = (-0.5 * s * s) / h;
    d[1] = (t * (1.5 * t - 2)) / h;
    d[2] = (s * (2 - 1.5 * s)) / h;
    d[3] = (0.5 * t * t) / h;
    return first;
  }

  return (x, y, g) => {
    const column = weigh(x, wx, dx);
    const row = weigh(y, wy, dy);
    let value = 0;
    g[0] = g[1] = 0;
    for (let j = 0; j < 4; j++) {
      const k = (row + j) * (n + 2) + column;
      const along = wx[0] * c[k] + wx[1] * c[k + 1] + wx[2] * c[k + 2] + wx[3] * c[k + 3];
      value += wy[j] * along;
      g[0] += wy[j] * (dx[0] * c[k] + dx[1] * c[k + 1] + dx[2] * c[k + 2] + dx[3] * c[k + 3]);
      g[1] += dy[j] * along;
    }
    return value;
  };
}

const LANES = 4; // points that go through a net together: one load of a weight serves them all

// out = matrix inp (+ bias) for LANES points; unit k of lane p stands at k * LANES + p.
function dense(matrix, bias, rows, columns, inp, out) {
  for (let r = 0, k = 0; r < rows; r++) {
    let s0 = bias ? bias[r] : 0;
    let s1 = s0;
    let s2 = s0;
    let s3 = s0;
    for (let j = 0; j < LANES * columns; j += LANES) {
      const w = matrix[k++];
      s0 += w * inp[j];
      s1 += w * inp[j + 1];
      s2 += w * inp[j + 2];
      s3 += w * inp[j + 3];
    }
    out[LANES * r] = s0;
    out[LANES * r + 1] = s1;
    out[LANES * r + 2] = s2;
    out[LANES * r + 3] = s3;
  }
}

function transposed(matrix, rows, columns) {
  return matrix.map((_, k) => matrix[(k % rows) * columns + Math.floor(k / rows)]);
}

// A net z_0 = W_0 (factor x) + b_0, z_k = W_k swish(z_(k-1)) + b_k + S z_(k-2), E = z_last / divide. S is 0 but at the
// end of a residual block: the identity (skip "same") or a matrix of its own (skip "matrix").
function net({ layers, weights, biases, factor, divide }) {
  const w = decode(weights);
  const b = decode(biases);
  let at = 0;
  let unit = 0;
  const take = (rows, columns) => w.slice(at, (at += rows * columns));
  const space = (size) => new Float64Array(LANES * size);
  const z = layers.map(({ rows, columns, skip }, k) => {
    const matrix = take(rows, columns);
    const before = skip ? layers[k - 2].rows : 0;
    const across = skip === "matrix" ? take(rows, before) : null;
    return {
      rows, columns, skip, before, matrix, across,
      bias: b.slice(unit, (unit += rows)),
      back: transposed(matrix, rows, columns),
      backAcross: across && transposed(across, rows, before),
      out: space(rows), act: space(rows), slope: space(rows), grad: space(rows), inner: space(columns),
      side: space(Math.max(rows, before)),
    };
  });
  const last = z.length - 1;
  const point = space(2);

  function forward() {
    for (let k = 0; k <= last; k++) {
      const l = z[k];
      dense(l.matrix, l.bias, l.rows, l.columns, k ? z[k - 1].act : point, l.out);
      if (l.skip) {
        const from = z[k - 2].out;
        if (l.across) dense(l.across, null, l.rows, l.before, from, l.side);
        const side = l.across ? l.side : from;
        for (let j = 0; j < l.out.length; j++) l.out[j] += side[j];
      }
      if (k === last) return;
      for (let j = 0; j < l.out.length; j++) {
        const s = 1 / (1 + Math.exp(-l.out[j]));
        l.act[j] = l.out[j] * s;
        l.slope[j] = s * (1 + l.out[j] * (1 - s));
      }
    }
  }

  function backward() {
    for (const l of z) l.grad.fill(0);
    z[last].grad.fill(1);
    for (let k = last; k >= 0; k--) {
      const l = z[k];
      dense(l.back, null, l.columns, l.rows, l.grad, l.inner);
      if (k === 0) return;
      const { grad, slope } = z[k - 1];
      for (let j = 0; j < grad.length; j++) grad[j] += slope[j] * l.inner[j];
      if (!l.skip) continue;
      if (l.across) dense(l.backAcross, null, l.before, l.rows, l.grad, l.side);
      const side = l.across ? l.side : l.grad;
      const far = z[k - 2].grad;
      for (let j = 0; j < far.length; j++) far[j] += side[j];
    }
  }

  return (x, n, value, grad) => {
    for (let i = 0; i < n; i += LANES) {
      for (let p = 0; p < LANES; p++) {
        point[p] = i + p < n ? factor * x[2 * (i + p)] : 0;
        point[LANES + p] = i + p < n ? factor * x[2 * (i + p) + 1] : 0;
      }
      forward();
      backward();
      for (let p = 0; p < LANES && i + p < n; p++) {
        value[i + p] = z[last].out[p] / divide;
        grad[2 * (i + p)] = (factor / divide) * z[0].inner[p];
        grad[2 * (i + p) + 1] = (factor / divide) * z[0].inner[LANES + p];
      }
    }
  };
}

function createEnergy(spec) {
  const points = { lattice, mixture, checkerboard, funnel, table };
  if (points[spec.kind]) return pointwise(points[spec.kind](spec));
  if (spec.kind === "net") return net(spec);
  throw new Error(`unknown energy kind "${spec.kind}"; known: ${Object.keys(points).join(", ")}, net`);
}

// ---- the chains ----

const PROBES = 256; // particles from which the effective temperature is measured: 6 % of error on a Gaussian
const PROBE = 1e-4; // and the distance of its differences, far below every width of a density here
const ESCAPE = 1e3; // a particle beyond this has diverged: every density here lives within |x| < 10

// The parts of a walk down noise levels: energies of the levels 0, 1, .. and the tables of recovery.noising. A net
// with levels has one set of weights, and biases for each level.
function levelsOf({ net, biases, scales, energies, K, delta, precision, scale }) {
  const specs = net ? biases.map((b, t) => ({ ...net, biases: b, divide: scales[t] })) : energies;
  return { energies: specs.map(createEnergy), K, delta, precision, scale };
}

// Mirror at the walls of [-wall, wall].
function reflect(v, wall) {
  const period = 4 * wall;
  return wall - Math.abs(((((v + wall) % period) + period) % period) - 2 * wall);
}

class Chains {
  // unit: the standard deviation of the Gaussian start; data: points x[0], y[0], x[1], .. of the data start.
  // levels: what a walk down noise levels needs (levelsOf), instead of one energy.
  constructor(energy, { n, seed, start, box, walls = 0, unit = 1, data = null, levels = null }) {
    this.levels = levels;
    this.energy = energy;
    this.n = n;
    this.walls = walls;
    this.rng = new Rng(seed);
    const from = {
      uniform: () => (2 * this.rng.uniform() - 1) * box,
      center: () => 0,
      gaussian: () => unit * this.rng.normal(),
      data: (k) => data[k % data.length],
    }[start];
    this.x = new Float64Array(2 * n).map((_, k) => from(k));
    this.count = 0;
    this.diverged = false;
    this.accepted = 0; // Metropolis proposals taken, of `proposed`
    this.proposed = 0;
    this.value = new Float64Array(n);
    this.grad = new Float64Array(2 * n);
    this.next = new Float64Array(2 * n);
    this.nextValue = new Float64Array(n);
    this.nextGrad = new Float64Array(2 * n);
    if (!levels) return;
    this.anchor = new Float64Array(2 * n); // the sample of the level above, x_(t+1)
    this.level = levels.energies.length;
    this.descend();
  }

  // To the next level: the sample y of this one is x_t = y / scale, which the next one is conditioned on.
  descend() {
    if (this.level < this.levels.energies.length) this.x = this.x.map((v) => v / this.levels.scale[this.level]);
    this.anchor.set(this.x);
    this.level -= 1;
    this.energy = this.levels.energies[this.level];
  }

  // Whether all K updates of the level are done.
  finished() {
    return this.count === (this.levels.energies.length - this.level) * this.levels.K;
  }

  // Energy and gradient that the chain follows; at a level, E(y) + precision / 2 |x_(t+1) - y|^2.
  evaluate(x, value, grad) {
    this.energy(x, x.length / 2, value, grad);
    if (!this.levels) return;
    const precision = this.levels.precision[this.level];
    for (let i = 0; i < x.length; i++) {
      const away = x[i] - this.anchor[i];
      value[i >> 1] += 0.5 * precision * away * away;
      grad[i] += precision * away;
    }
  }


  // One update of every particle, with a Metropolis correction if `mala`. Returns false, and stays there, once a
  // particle has diverged. With levels, a is in units of the level's delta^2 and b in units of delta, and after K
  // updates the chain goes a level down.
  step(a, b, mala = false) {
    if (this.diverged) return false;
    if (this.levels) {
      const { delta } = this.levels;
      if (this.finished() && this.level > 0) this.descend();
      a *= delta[this.level] ** 2;
      b *= delta[this.level];
    }
    const { x, next, grad, walls } = this;
    this.evaluate(x, this.value, grad);
    for (let i = 0; i < x.length; i++) {
      next[i] = x[i] - a * grad[i] + b * this.rng.normal();
      if (walls && !mala && Math.abs(next[i]) > walls) next[i] = reflect(next[i], walls);
    }
    if (mala && b > 0) this.correct(a, b);
    x.set(next);
    // Written so that a NaN counts as diverged.
    for (let i = 0; i < x.length; i++) if (!(Math.abs(x[i]) <= ESCAPE)) this.diverged = true;
    this.count += 1;
    return !this.diverged;
  }

  // Puts back the particles whose proposal is rejected: exact for exp(-E / temperature) at temperature b^2 / (2a).
  correct(a, b) {
    const { x, next, value, grad, nextValue, nextGrad, walls } = this;
    const temperature = (b * b) / (2 * a);
    this.evaluate(next, nextValue, nextGrad);
    for (let k = 0; k < this.n; k++) {
      let log = (value[k] - nextValue[k]) / temperature;
      for (let i = 2 * k; i < 2 * k + 2; i++) {
        const there = next[i] - x[i] + a * grad[i];
        const back = x[i] - next[i] + a * nextGrad[i];
        log += (0.5 * (there - back) * (there + back)) / (b * b);
        if (walls && Math.abs(next[i]) > walls) log = -Infinity; // the density is 0 behind a wall
      }
      this.proposed += 1;
      // A NaN is a rejection.
      if (Math.log(this.rng.uniform()) < log) this.accepted += 1;
      else next.set(x.subarray(2 * k, 2 * k + 2), 2 * k);
    }
  }

  // Share of the proposals since the last call that were accepted; null where there were none.
  acceptance() {
    const rate = this.proposed ? this.accepted / this.proposed : null;
    this.accepted = this.proposed = 0;
    return rate;
  }

  // The temperature at which the particles would be at rest: over exp(-E / T) the mean of |grad E|^2 is T times the
  // mean of the Laplacian. From the first PROBES particles, with the Laplacian by differences of the gradient; null
  // where its mean is not positive, as it may be while chains are far from rest.
  effectiveTemperature() {
    const x = this.x.slice(0, 2 * PROBES);
    const value = new Float64Array(x.length / 2);
    const grad = new Float64Array(x.length);
    this.evaluate(x, value, grad);
    const squares = grad.reduce((sum, g) => sum + g * g, 0);
    const from = x.slice();
    let laplacians = 0;
    for (const d of [0, 1]) {
      for (const h of [PROBE, -PROBE]) {
        for (let i = d; i < x.length; i += 2) x[i] = from[i] + h;
        this.evaluate(x, value, grad);
        for (let i = d; i < x.length; i += 2) laplacians += grad[i] / (2 * h);
      }
      for (let i = d; i < x.length; i += 2) x[i] = from[i];
    }
    return laplacians > 0 ? squares / laplacians : null;
  }

  // Particles that the picture does not show.
  outside(box) {
    let n = 0;
    for (let i = 0; i < this.x.length; i += 2) n += Math.max(Math.abs(this.x[i]), Math.abs(this.x[i + 1])) > box;
    return n;
  }

  meanEnergy() {
    this.energy(this.x, this.n, this.value, this.grad);
    return this.value.reduce((sum, e) => sum + e, 0) / this.n;
  }
}

// Energies on a size x size grid of cell centers over [-box, box]^2, first row at the top.
function energyGrid(energy, box, size) {
  const h = (2 * box) / size;
  const x = new Float64Array(2 * size * size);
  for (let k = 0; k < size * size; k++) {
    x[2 * k] = -box + ((k % size) + 0.5) * h;
    x[2 * k + 1] = box - (Math.floor(k / size) + 0.5) * h;
  }
  const value = new Float64Array(size * size);
  energy(x, size * size, value, new Float64Array(2 * size * size));
  return value;
}

// Mean energy under exp(-E / temperature), by a sum over the grid.
function exactMeanEnergy(grid, temperature) {
  const low = grid.reduce((p, q) => Math.min(p, q));
  let z = 0;
  let sum = 0;
  for (const e of grid) {
    const w = Math.exp((low - e) / temperature);
    z += w;
    sum += w * e;
  }
  return sum / z;
}

// Mass of exp(-E) in each of BINS x BINS cells, from energies on a grid whose side is a multiple of BINS.
function binMasses(grid, size) {
  const low = grid.reduce((p, q) => Math.min(p, q));
  const mass = new Float64Array(BINS * BINS);
  const per = size / BINS;
  grid.forEach((e, k) => {
    mass[Math.floor(k / size / per) * BINS + Math.floor((k % size) / per)] += Math.exp(low - e);
  });
  const total = mass.reduce((sum, m) => sum + m, 0);
  return mass.map((m) => m / total);
}

// Total variation between the particles' histogram and the cells' masses: 0 for equal, 1 for apart. Particles outside
// the box count as one more cell without mass.
function histogramDistance(x, mass, box) {
  const count = new Float64Array(BINS * BINS);
  const n = x.length / 2;
  let outside = 0;
  for (let i = 0; i < x.length; i += 2) {
    const column = Math.floor(((x[i] + box) * BINS) / (2 * box));
    const row = Math.floor(((box - x[i + 1]) * BINS) / (2 * box));
    if (column >= 0 && column < BINS && row >= 0 && row < BINS) count[row * BINS + column] += 1;
    else outside += 1;
  }
  return 0.5 * count.reduce((sum, c, k) => sum + Math.abs(c / n - mass[k]), outside / n);
}

// What that distance is on average for n independent exact draws. A binomial's mean absolute deviation is
// 2 m C(n, m) p^m (1 - p)^(n - m + 1) with m = floor(n p) + 1 (de Moivre).
function expectedDistance(mass, n) {
  const logFactorial = new Float64Array(n + 1);
  for (let k = 1; k <= n; k++) logFactorial[k] = logFactorial[k - 1] + Math.log(k);
  let sum = 0;
  for (const p of mass) {
    if (p <= 0 || p >= 1) continue;
    const m = Math.floor(n * p) + 1;
    const logChoose = logFactorial[n] - logFactorial[m] - logFactorial[n - m];
    sum += 2 * m * Math.exp(logChoose + m * Math.log(p) + (n - m + 1) * Math.log1p(-p));
  }
  return (0.5 * sum) / n;
}

// Modes with a particle within the radius.
function modesVisited(x, { at, radius }) {
  return at.filter(([mx, my]) => {
    for (let i = 0; i < x.length; i += 2) if (Math.hypot(x[i] - mx, x[i + 1] - my) < radius) return true;
    return false;
  }).length;
}

function divergedText(a, limit, count) {
  const why =
    limit && a > limit
      ? `step size a = ${short(a)} above the stability limit 2/L = ${short(limit)}`
      : `a particle left |x| < ${ESCAPE} at a = ${short(a)}`;
  return `Diverged at step ${count}: ${why}. Lower the step size and restart.`;
}

// ---- the face ----

const short = (v) => (v !== 0 && (Math.abs(v) < 0.01 || Math.abs(v) >= 1e4) ? v.toExponential(1) : v.toPrecision(3));
const GRID = 192; // heat map cells a side, at most
const BINS = 16; // histogram cells a side; the heat map's side is a multiple of it
const DEPTH = 10; // energies above the lowest by more than this get one color
const SHORT = 60; // steps; a shorter run waits for its reader to press Play
const TOLD = ["histogram_distance", "acceptance", "modes_visited", "effective_temperature"]; // null once diverged
const REPORT_MS = 250; // status and kernel hear of the state at most this often

// Weights of a spec's net; 1 for energies that cost next to nothing.
const costOf = (spec) => (spec.layers || []).reduce((sum, { rows, columns }) => sum + rows * columns, 1);

// A large net paints a coarser heat map, so that the page does not wait for it.
const gridSize = (cost) => Math.min(GRID, Math.max(3 * BINS, BINS * Math.floor(Math.sqrt(1e8 / cost) / BINS)));

// Particles at the slider's end: one update stays below 30 ms on one core, at some 1e9 multiplications a second.
const mostParticles = (cost) => Math.min(2000, Math.max(100, Math.round(1.5e7 / cost)));

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

// Every live widget loads its own copy of this module: a counter would repeat ids on one page.
const newId = (name) => `ebm-${name}-${Math.random().toString(36).slice(2, 10)}`;

// A labeled range input. `to` maps the position in [0, 1] to the trait, `from` maps it back.
function slider(model, trait, text, { to, from, show, ticks = [] }) {
  const id = newId(trait);
  const input = make("input", { type: "range", id, min: 0, max: 1, step: 0.005 });
  const output = make("output", { for: id });
  const row = make("div", { class: "ebm-row" }, make("label", { for: id }, text), input, output);
  if (ticks.length) {
    row.append(make("datalist", { id: `${id}-ticks` }, ...ticks.map((t) => make("option", { value: from(t) }))));
    input.setAttribute("list", `${id}-ticks`);
  }
  const refresh = () => {
    const value = model.get(trait);
    const moved = Math.abs(to(Number(input.value)) - value) > 1e-12;
    if (document.activeElement !== input || moved) input.value = from(value);
    output.textContent = show(value);
    input.setAttribute("aria-valuetext", show(value));
  };
  input.addEventListener("input", () => {
    model.set(trait, to(Number(input.value)));
    model.save_changes();
  });
  return { row, input, refresh };
}

// A labeled checkbox on a trait.
function checkbox(model, trait, text) {
  const id = newId(trait);
  const input = make("input", { type: "checkbox", id });
  input.addEventListener("change", () => {
    model.set(trait, input.checked);
    model.save_changes();
  });
  const refresh = () => {
    input.checked = model.get(trait);
  };
  return { row: make("div", { class: "ebm-row ebm-check" }, input, make("label", { for: id }, text)), refresh };
}

const logScale = (low, high, round = (v) => v) => ({
  to: (u) => round(low * (high / low) ** u),
  from: (v) => Math.log(Math.max(v, low) / low) / Math.log(high / low),
});

function render({ model, el }) {
  const spec = model.get("spec");
  const levels = spec.kind === "levels" ? levelsOf(spec) : null;
  const energy = levels ? null : createEnergy(spec);
  const box = model.get("box");
  const cost = costOf(spec.net || spec);
  const size = gridSize(cost);
  const data = model.get("data") ? decode(model.get("data")) : null;
  const limit = model.get("limit"); // 0 where no stability limit is known; the slider then spans a fixed range
  const modes = model.get("modes"); // {at, radius}, or {} where the energy has no separate modes
  const grids = {}; // a level's energies on the picture, computed when the level is first seen
  let grid, masses;
  let chains, picture;
  let playing = false;
  let visible = false; // until the observer below says otherwise
  let frame = 0;
  let reported = 0;
  const get = (name) => model.get(name);

  const canvas = make("canvas", { role: "img" });
  const status = make("p", { class: "ebm-status", role: "status" });
  const play = make("button", { type: "button", class: "ebm-play" });
  const once = make("button", { type: "button" }, "Step");
  const again = make("button", { type: "button" }, "Restart");
  const buttons = make("div", { class: "ebm-buttons" }, play, once, again);
  const panel = make("dl", { class: "ebm-panel" });
  const root = make("div", { class: "ebm-playground" });
  el.append(root);

  const last = levels ? levels.K * levels.energies.length : Infinity; // steps until the bottom level has ended
  const end = () => Math.min(get("n_steps"), last);
  const top = levels ? 5 : limit ? 10 * limit : (box * box) / 20;
  const noiseTop = Math.sqrt(2 * top);
  const step = slider(model, "step", levels ? "Step size a, in δ²" : "Step size a", {
    ...logScale(top * 1e-4, top),
    show: short,
    ticks: limit ? [limit] : [],
  });
  const noise = slider(model, "noise", levels ? "Noise b, in δ" : "Noise b", {
    to: (u) => noiseTop * u * u, // quadratic: fine near 0, and 0 can be reached
    from: (v) => Math.sqrt(Math.min(v / noiseTop, 1)),
    show: (b) => `${short(b)} (temperature ${short((b * b) / (2 * get("step")))})`,
  });
  const steps = slider(model, "n_steps", "Number of steps", { ...logScale(10, 1e5, Math.round), show: String });
  const amounts = logScale(10, mostParticles(cost), Math.round);
  const particles = slider(model, "n_particles", "Particles", { ...amounts, show: String });
  const noisiest = levels ? Math.max(levels.energies.length - 1, 1) : 1;
  const level = slider(model, "level", "Level t", {
    to: (u) => Math.round(noisiest * (1 - u)), // to the right is down
    from: (t) => 1 - t / noisiest,
    show: (t) => `${t} (${noisiest} is the noisiest)`,
  });
  level.input.step = 1 / noisiest;
  const limitNote = make("span", { class: "ebm-note", id: newId("limit") });
  step.input.setAttribute("aria-describedby", limitNote.id);
  step.row.append(limitNote);

  const lock = checkbox(model, "locked", "Temperature 1: b = √(2a)");
  const mala = checkbox(model, "mala", "Metropolis correction (MALA)");
  const seedId = newId("seed");
  const seed = make("input", { type: "number", id: seedId, min: 0, max: 4294967295, step: 1 });
  const startId = newId("start");
  const start = make(
    "select",
    { id: startId },
    make("option", { value: "uniform" }, "uniform in the picture"),
    make("option", { value: "center" }, "all at the center"),
    make("option", { value: "gaussian" }, "standard normal"),
    ...(data ? [make("option", { value: "data" }, "at data points")] : []),
  );
  const seeds = make(
    "div",
    { class: "ebm-row ebm-pair" },
    make("label", { for: seedId }, "Seed"),
    seed,
    ...(levels ? [] : [make("label", { for: startId }, "Start"), start]), // a walk starts from noise
  );
  root.append(
    make("div", { class: "ebm-stage" }, canvas, buttons, status, panel),
    make(
      "div",
      { class: "ebm-controls" },
      ...(levels ? [level.row] : []),
      ...[step.row, noise.row, lock.row, mala.row],
      ...(levels ? [] : [steps.row]),
      ...[particles.row, seeds],
    ),
  );
  // JupyterLab takes the keys of whatever has the focus, arrows too, unless that element itself says otherwise.
  for (const control of root.querySelectorAll("input, select, button")) {
    control.setAttribute("data-lm-suppress-shortcuts", "true");
  }

  // What the panel tells, as [name, value, what exact samples have or null]; nothing once diverged.
  function findings() {
    if (chains.diverged) return [];
    const temperature = (get("noise") * get("noise")) / (2 * get("step"));
    const distance = histogramDistance(chains.x, masses, box);
    const rate = chains.acceptance();
    model.set("histogram_distance", distance);
    model.set("acceptance", rate);
    // The panel holds the particles against exp(-E), whatever temperature the chain has.
    const exact = Math.abs(temperature - 1) < 1e-6 ? "exact" : "exact at temperature 1:";
    const rows = [
      ["Mean energy", chains.meanEnergy().toFixed(2), `${exact} ${exactMeanEnergy(grid, 1).toFixed(2)}`],
      ["Histogram distance", distance.toFixed(3), `${exact} ${expectedDistance(masses, chains.n).toFixed(3)}`],
    ];
    if (modes.at) {
      const visited = modesVisited(chains.x, modes);
      model.set("modes_visited", visited);
      rows.push(["Modes with a particle", visited, `of ${modes.at.length}`]);
    }
    const measured = chains.effectiveTemperature();
    model.set("effective_temperature", measured);
    rows.push(["Effective temperature", measured === null ? "none" : short(measured), `b²/(2a): ${short(temperature)}`]);
    const accepted = rate === null ? "none yet" : `${(100 * rate).toFixed(0)} %`;
    if (get("mala")) rows.push(["Accepted proposals", accepted, null]);
    return rows;
  }

  function say(polite) {
    // A live region that changes 60 times a second is noise to a screen reader: it speaks only when the chain rests.
    status.setAttribute("aria-live", polite ? "polite" : "off");
    if (chains.diverged) {
      status.textContent = divergedText(chains.a, limit, chains.count);
      for (const name of TOLD) model.set(name, null);
    } else {
      const temperature = chains.count ? (get("noise") * get("noise")) / (2 * get("step")) : 1;
      const known = !levels && temperature >= 0.2 && temperature <= 2;
      const mean = known ? exactMeanEnergy(grid, temperature).toFixed(2) : "";
      const exact = known ? ` (exact at temperature ${short(temperature)}: ${mean})` : "";
      const at = levels ? ` Level ${chains.level}.` : "";
      const energy = `Mean energy ${chains.meanEnergy().toFixed(2)}${exact}.`;
      const of = chains.count <= end() ? ` of ${end()}` : "";
      const out = chains.outside(box);
      const gone = out ? ` ${out} of ${chains.n} particles are outside of the picture.` : "";
      status.textContent = `Step ${chains.count}${of}.${at} ${energy}${gone}`;
    }
    panel.replaceChildren(
      ...findings().map(([name, value, exact]) => {
        const note = exact === null ? [] : [make("span", { class: "ebm-exact" }, exact)];
        return make("div", {}, make("dt", {}, name), make("dd", {}, String(value), ...note));
      }),
    );
    root.classList.toggle("ebm-diverged", chains.diverged);
    play.textContent = playing ? "Pause" : "Play";
    model.set("count", chains.count);
    model.set("mean_energy", chains.diverged ? null : chains.meanEnergy());
    model.save_changes();
  }

  // A live notebook renders a widget before it puts it on the page; until then there are no colors to paint with.
  function paintEnergy() {
    picture = null;
    if (!root.isConnected) return;
    const style = getComputedStyle(root);
    const color = (name) => style.getPropertyValue(name).trim().match(/\d+/g).map(Number);
    const [low, high] = [color("--ebm-low"), color("--ebm-high")];
    const sum = (c) => c[0] + c[1] + c[2];
    const where = `${sum(low) < sum(high) ? "dark" : "bright"} where the energy is low`;
    const square = `on [-${short(box)}, ${short(box)}] squared`;
    canvas.setAttribute("aria-label", `Particles on the energy "${get("density")}", ${where}, ${square}`);
    const bottom = grid.reduce((p, q) => Math.min(p, q));
    const image = new ImageData(size, size);
    grid.forEach((e, k) => {
      const u = Math.sqrt(Math.min((e - bottom) / DEPTH, 1));
      for (let c = 0; c < 3; c++) image.data[4 * k + c] = low[c] + u * (high[c] - low[c]);
      image.data[4 * k + 3] = 255;
    });
    picture = make("canvas", { width: size, height: size });
    picture.getContext("2d").putImageData(image, 0, 0);
  }

  function draw() {
    if (!picture) paintEnergy();
    if (!picture) return;
    const side = Math.max(1, Math.round((canvas.clientWidth || 360) * (window.devicePixelRatio || 1)));
    if (canvas.width !== side) canvas.width = canvas.height = side;
    const context = canvas.getContext("2d");
    context.drawImage(picture, 0, 0, side, side);
    context.fillStyle = getComputedStyle(root).getPropertyValue("--ebm-dot");
    const r = Math.max(1.2, side / 240);
    for (let i = 0; i < chains.x.length; i += 2) {
      const px = (0.5 + chains.x[i] / (2 * box)) * side;
      const py = (0.5 - chains.x[i + 1] / (2 * box)) * side;
      context.fillRect(px - r, py - r, 2 * r, 2 * r);
    }
  }

  function advance() {
    if (chains.count >= last) return; // below the bottom level there is nothing
    chains.a = get("step");
    chains.step(chains.a, get("noise"), get("mala"));
    if (chains.diverged || chains.count >= end()) playing = false;
    follow();
  }

  // The picture and the trait follow the chain's level.
  function follow() {
    const t = levels ? chains.level : 0;
    if (grids[t] !== grid || !grid) {
      grid = grids[t] = grids[t] || energyGrid(levels ? levels.energies[t] : energy, box, size);
      masses = binMasses(grid, size);
      paintEnergy();
    }
    if (levels && get("level") !== t) {
      model.set("level", t);
      model.save_changes();
    }
  }

  // The slider walks the chain down through whole levels; on the way up, the same walk starts again from noise.
  function walk() {
    if (!levels || get("level") === chains.level) return;
    const target = get("level");
    if (target > chains.level) chains = fresh();
    while (chains.level > target && !chains.diverged) {
      chains.a = get("step");
      chains.step(chains.a, get("noise"), get("mala"));
      if (chains.finished()) chains.descend();
    }
    follow();
    draw();
    say(!playing);
    wake();
  }

  function tick(now) {
    frame = 0;
    if (!playing) return;
    advance();
    draw();
    if (!playing) say(true);
    else if (now - reported > REPORT_MS) {
      say(false);
      reported = now;
    }
    wake();
  }

  function wake() {
    if (playing && visible && !frame) frame = requestAnimationFrame(tick);
  }

  function fresh() {
    const { walls, unit } = spec;
    const chosen = { n: get("n_particles"), seed: get("seed"), start: levels ? "gaussian" : get("start") };
    return new Chains(energy, { ...chosen, box, walls, unit, data, levels });
  }

  function reset() {
    chains = fresh();
    follow();
    draw();
    say(!playing);
    wake();
  }

  function refresh() {
    for (const control of [step, noise, steps, particles, lock, mala, level]) control.refresh();
    noise.input.disabled = get("locked");
    if (document.activeElement !== seed) seed.value = get("seed");
    start.value = get("start");
    const above = Boolean(limit) && get("step") > limit;
    const bound = `stability limit 2/L = ${short(limit)}`;
    limitNote.textContent = limit ? (above ? `above the ${bound}: chains can diverge` : bound) : "";
    step.row.classList.toggle("ebm-above", above);
  }

  // Temperature 1 is kept here and in Python by the same formula, so that the page without a kernel has it too.
  function hold() {
    const b = Math.sqrt(2 * get("step"));
    if (get("locked") && get("noise") !== b) {
      model.set("noise", b);
      model.save_changes();
    }
    refresh();
  }

  play.addEventListener("click", () => {
    if (!playing && (chains.diverged || chains.count >= end())) reset();
    playing = !playing;
    say(!playing);
    wake();
  });
  once.addEventListener("click", () => {
    playing = false;
    advance();
    draw();
    say(true);
  });
  again.addEventListener("click", reset);
  seed.addEventListener("input", () => {
    if (!/^\d+$/.test(seed.value)) return;
    model.set("seed", Math.min(Number(seed.value), 4294967295));
    model.save_changes();
  });
  seed.addEventListener("change", () => {
    seed.value = get("seed"); // what is no seed gives way to the one in use
  });
  start.addEventListener("change", () => {
    model.set("start", start.value);
    model.save_changes();
  });

  const handlers = [
    ["change:step change:locked", hold],
    ["change:noise change:mala change:n_steps change:n_particles change:seed change:start", refresh],
    ["change:n_particles change:seed change:start", reset],
    ["change:step change:noise change:mala change:n_steps", () => playing || say(false)],
    ["change:level", () => (level.refresh(), walk())],
  ].flatMap(([events, handler]) => events.split(" ").map((event) => [event, handler]));
  for (const [event, handler] of handlers) model.on(event, handler);

  const seen = new IntersectionObserver(([entry]) => {
    visible = entry.isIntersecting;
    wake();
  });
  const theme = new MutationObserver(() => {
    paintEnergy();
    draw();
  });
  const resized = new ResizeObserver(() => draw());

  const target = get("level");
  reset();
  if (levels && target < chains.level) {
    model.set("level", target);
    walk();
  }
  hold();
  seen.observe(canvas);
  resized.observe(canvas);
  theme.observe(document.documentElement, { attributeFilter: ["data-theme"] });
  theme.observe(document.body, { attributeFilter: ["data-jp-theme-light"] });
  // A run shorter than a second would be over before anybody looks.
  playing = !window.matchMedia("(prefers-reduced-motion: reduce)").matches && end() >= SHORT;
  say(!playing);
  wake();

  return () => {
    playing = false;
    cancelAnimationFrame(frame);
    for (const observer of [seen, theme, resized]) observer.disconnect();
    for (const [event, handler] of handlers) model.off(event, handler);
    root.remove();
  };
}

export { Chains, Rng, binMasses, createEnergy, decode, divergedText, energyGrid, erfcx, exactMeanEnergy };
export { levelsOf, expectedDistance, histogramDistance, modesVisited };
export default { render };
