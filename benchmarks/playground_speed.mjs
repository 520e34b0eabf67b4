// Updates a second of the playground's chains in Node on one core, as JSON: `node benchmarks/playground_speed.mjs`,
// with the milliseconds of a measurement as an argument. Wanted: 60 a second with 1,000 particles on mixtures of 25
// terms and on tables, and with 250 on a 2x32 net.
import { readFileSync } from "node:fs";

const source = readFileSync(new URL("../ebmlib/page/playground.js", import.meta.url), "utf8");
const { Chains, Rng, createEnergy } = await import(
  "data:text/javascript;base64," + Buffer.from(source).toString("base64")
);
const rng = new Rng(0);
const normals = (n, std) => Float32Array.from({ length: n }, () => std * rng.normal());
const base64 = (values) => Buffer.from(values.buffer).toString("base64");
const axis = [-4, -2, 0, 2, 4];

function net(width, depth) {
  const widths = [2, ...Array(depth).fill(width), 1];
  const layers = widths.slice(1).map((rows, k) => ({ rows, columns: widths[k], skip: null }));
  const weights = layers.flatMap(({ rows, columns }) => [...normals(rows * columns, 1 / Math.sqrt(columns))]);
  const biases = normals(layers.reduce((sum, { rows }) => sum + rows, 0), 0.1);
  const arrays = { weights: base64(Float32Array.from(weights)), biases: base64(biases) };
  return { kind: "net", layers, factor: 1, divide: 1, ...arrays };
}

const cases = [
  ["lattice of 25 terms", 1000, { kind: "lattice", axes: [axis, axis], std: 0.084 }],
  ["mixture of 25 terms", 1000, { kind: "mixture", means: axis.flatMap((x) => axis.map((y) => [x, y])), std: 0.084 }],
  ["table of 257 x 257", 1000, { kind: "table", n: 257, box: 3, coefficients: base64(normals(259 * 259, 0.1)) }],
  ["net 2x32", 250, net(32, 2)],
  ["net 3x128", 250, net(128, 3)],
];
const milliseconds = Number(process.argv[2] || 1000);
const rows = [];
for (const [name, n, spec] of cases) {
  for (const mala of [false, true]) {
    const chains = new Chains(createEnergy(spec), { n, seed: 1, start: "uniform", box: 3, walls: 3 });
    for (let k = 0; k < 20; k++) chains.step(1e-3, 0.045, mala);
    const began = performance.now();
    let steps = 0;
    for (; performance.now() - began < milliseconds; steps++) chains.step(1e-3, 0.045, mala);
    const rate = (1000 * steps) / (performance.now() - began);
    rows.push({ energy: name, particles: n, mala, updates_per_second: Math.round(rate) });
  }
}
console.log(JSON.stringify(rows, null, 1));
