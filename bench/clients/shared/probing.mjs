// What the probes in Node share; the counterpart of probing.py, with the same questions and arguments:
//
//     node probe.mjs ENDPOINT ENGINE MODEL OUT
import { readFileSync, writeFileSync } from "node:fs";
import { setTimeout as wait } from "node:timers/promises";

export const QUESTION = "How does the import statement work?";
export const MESSAGES = [{ role: "user", content: QUESTION }];
export const MODEL = "tiny";
export const NO_MODEL = "missing";
export const TOKENS = 12;
export const LONG = 900;
export const TOO_LONG = "word ".repeat(2000);
export const QUESTIONS = Array.from({ length: 16 }, (_, number) => `${QUESTION} ${number}`);
export const SCHEMA = {
  type: "object",
  properties: { city: { type: "string", enum: ["Paris", "Rome"] }, celsius: { type: "boolean" } },
  required: ["city", "celsius"],
  additionalProperties: false,
};
// An engine that has generated nothing for so long has nothing to do.
const REST_MS = 1000;
const [endpoint, engine, , out] = process.argv.slice(2);
export { endpoint };

// Tokens that the engine has generated since its start.
async function generated() {
  const text = await (await fetch(`${engine}/metrics`)).text();
  const found = text.matchAll(/^vllm:generation_tokens_total\{[^}]*\} (\S+)$/gm);
  return [...found].reduce((sum, match) => sum + Number(match[1]), 0);
}

// Leaves a stream that `begin` reads the beginning of: did text arrive, and was it aborted at the engine?
export async function left(begin) {
  const before = await generated();
  const began = Boolean(await begin());
  for (let last = await generated(); ; ) {
    await wait(REST_MS);
    const now = await generated();
    if (now === last) return { began, aborted: now - before < LONG };
    last = now;
  }
}

async function outcome(run) {
  try {
    return (await run()) ?? null;
  } catch (error) {
    return { raised: error.constructor.name, message: String(error.message), status: error.status ?? null };
  }
}

// Runs each case and writes what the client handed back. `cases`: functions by feature.
export async function run(name, cases) {
  const { version } = JSON.parse(readFileSync(`node_modules/${name}/package.json`));
  const found = {};
  for (const [feature, each] of Object.entries(cases)) found[feature] = await outcome(each);
  writeFileSync(out, JSON.stringify({ version, cases: found }));
}
