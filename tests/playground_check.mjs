// Checks on the playground's own module, in Node and in a browser. A task holds {energies: [{spec, points}],
// chains: [...]} and more; the answer has energies and gradients at the points, and the variance of many chains after
// `steps` updates from the center.
export function check(playground, task) {
  const { Chains, levelsOf, Rng, createEnergy, divergedText, erfcx, ...statistics } = playground;
  const energies = task.energies.map(({ spec, points }) => {
    const n = points.length;
    const value = new Float64Array(n);
    const g = new Float64Array(2 * n);
    createEnergy(spec)(Float64Array.from(points.flat()), n, value, g);
    return points.map((_, i) => [value[i], g[2 * i], g[2 * i + 1]]);
  });

  const chains = task.chains.map(({ spec, a, b, n, seed, steps, limit }) => {
    const run = new Chains(createEnergy(spec), { n, seed, start: "center", box: 1 });
    while (run.count < steps && run.step(a, b));
    const finite = run.x.every(Number.isFinite);
    const second = run.x.reduce((sum, v) => sum + v * v, 0) / run.x.length;
    const temperature = finite ? run.effectiveTemperature() : null;
    const text = divergedText(a, limit, run.count);
    return { count: run.count, diverged: run.diverged, second: finite ? second : null, temperature, text };
  });

  // Walks down noise levels and plain updates, every number told, so that torch can repeat them.
  const told = (run, advance) => {
    const start = Array.from(run.x);
    const noise = [];
    const normal = run.rng.normal.bind(run.rng);
    run.rng.normal = () => (noise.push(normal()), noise.at(-1));
    advance();
    return { start, noise, end: Array.from(run.x), temperature: run.effectiveTemperature() };
  };
  const walks = task.walks.map(({ spec, a, b, seed, n = 30 }) => {
    const levels = levelsOf(spec);
    const run = new Chains(null, { n, seed, start: "gaussian", box: 1, walls: spec.walls, levels });
    const seen = [];
    const out = told(run, () => {
      for (; !(run.finished() && run.level === 0); seen.push(run.level)) run.step(a, b);
    });
    return { ...out, seen };
  });
  const updates = task.updates.map(({ spec, a, b, seed, steps, options }) => {
    const data = options.data && Float64Array.from(options.data);
    const run = new Chains(createEnergy(spec), { n: 40, seed, box: 2, ...options, data });
    return told(run, () => {
      for (let k = 0; k < steps; k++) run.step(a, b);
    });
  });

  // Independent MALA chains from the exact law's scale: second moment, acceptance, and whether all stay in the walls.
  const mala = task.mala.map(({ spec, a, b, n, seed, steps, walls }) => {
    const run = new Chains(createEnergy(spec), { n, seed, start: "center", box: 1, walls });
    for (let k = 0; k < steps; k++) run.step(a, b, true);
    run.acceptance();
    run.step(a, b, true);
    const x = Array.from(run.x);
    const second = x.reduce((sum, v) => sum + v * v, 0) / x.length;
    return { second, rate: run.acceptance(), top: Math.max(...x.map(Math.abs)) };
  });

  const panel = task.panel.map(({ spec, points, box, size, modes, ns }) => {
    const grid = statistics.energyGrid(createEnergy(spec), box, size);
    const masses = statistics.binMasses(grid, size);
    const x = points.flat();
    return {
      masses: Array.from(masses),
      distance: statistics.histogramDistance(x, masses, box),
      expected: ns.map((n) => statistics.expectedDistance(masses, n)),
      energy: statistics.exactMeanEnergy(grid, 1),
      visited: statistics.modesVisited(x, modes),
    };
  });

  const rng = new Rng(task.seed);
  const uniforms = Array.from({ length: 100000 }, () => rng.uniform());
  const normals = Array.from({ length: 100000 }, () => rng.normal());
  return { energies, chains, walks, updates, mala, panel, uniforms, normals, erfcx: task.erfcx.map(erfcx) };
}
