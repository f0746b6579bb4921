// The official OpenAI client in Node.
import OpenAI from "openai";
import {
  LONG, MESSAGES, MODEL, NO_MODEL, QUESTION, QUESTIONS, SCHEMA, TOKENS, TOO_LONG, endpoint, left, run,
} from "./probing.mjs";

const client = new OpenAI({ baseURL: `${endpoint}/v1`, apiKey: "none" });
const GREEDY = { model: MODEL, temperature: 0, max_tokens: TOKENS };
const CHAT = { ...GREEDY, messages: MESSAGES };
const TOOLS = {
  max_tokens: 64,
  tools: [{ type: "function", function: { name: "weather", description: "The weather.", parameters: SCHEMA } }],
  tool_choice: { type: "function", function: { name: "weather" } },
};
const FORMAT = { type: "json_schema", json_schema: { name: "weather", schema: SCHEMA, strict: true } };
const chat = (changed) => client.chat.completions.create({ ...CHAT, ...changed });
const about = (content) => ({ messages: [{ role: "user", content }] });

async function summary(stream) {
  const found = { text: "", arguments: "", finish: [], usage: [] };
  let count = 0;
  for await (const chunk of stream) {
    count += 1;
    for (const { delta, finish_reason } of chunk.choices) {
      found.text += delta.content ?? "";
      for (const call of delta.tool_calls ?? []) found.arguments += call.function.arguments ?? "";
      if (finish_reason) found.finish.push(finish_reason);
    }
    if (chunk.usage) found.usage.push(chunk.usage);
  }
  return { ...found, several: count > 2 };
}

await run("openai", {
  answer: async () => [await chat(), await client.completions.create({ ...GREEDY, prompt: QUESTION })],
  "other routes": async () => {
    const asked = { model: MODEL, temperature: 0, max_output_tokens: TOKENS, input: QUESTION };
    const types = [];
    for await (const event of await client.responses.create({ ...asked, stream: true })) types.push(event.type);
    return [await client.models.list(), await client.responses.create(asked), [...new Set(types)].sort(), types.at(-1)];
  },
  stream: async () => summary(await chat({ stream: true })),
  "stream, usage": async () => summary(await chat({ stream: true, stream_options: { include_usage: true } })),
  "unknown model": () => chat({ model: NO_MODEL }),
  "bad parameter": () => chat({ temperature: -1 }),
  "prompt too long": () => chat({ ...about(TOO_LONG), stream: true }),
  tool: async () => [await chat(TOOLS), await summary(await chat({ ...TOOLS, stream: true }))],
  structured: () => chat({ max_tokens: 64, response_format: FORMAT }),
  "many at once": () => Promise.all(QUESTIONS.map((text) => chat(about(text)))),
  "left stream": async () => {
    const begin = async () => {
      const stream = await chat({ max_tokens: LONG, ignore_eos: true, stream: true });
      for await (const chunk of stream) if (chunk.choices[0]?.delta.content) return true;
      return false;
    };
    return [await left(begin), await chat()];
  },
});
