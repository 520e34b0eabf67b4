// Runs the playground's own module in Node. Reads {energies: [{spec, points}], chains: [...]} on stdin and prints JSON:
// energies and gradients at the points, and the variance of many chains after `steps` updates from the center.
import { readFileSync } from "node:fs";

const source = readFileSync(new URL("../ebmlib/playground.js", import.meta.url), "utf8");
const { Chains, Rng, createEnergy, divergedText, erfcx } = await import(
  "data:text/javascript;base64," + Buffer.from(source).toString("base64")
);
const task = JSON.parse(readFileSync(0, "utf8"));

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
  return { count: run.count, diverged: run.diverged, second: finite ? second : null, text: divergedText(a, limit, run.count) };
});

const rng = new Rng(task.seed);
const uniforms = Array.from({ length: 100000 }, () => rng.uniform());
const normals = Array.from({ length: 100000 }, () => rng.normal());
console.log(JSON.stringify({ energies, chains, uniforms, normals, erfcx: task.erfcx.map(erfcx) }));
