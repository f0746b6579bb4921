// The official Anthropic client in Node.
import Anthropic from "@anthropic-ai/sdk";
import { LONG, MESSAGES, MODEL, NO_MODEL, QUESTIONS, SCHEMA, TOKENS, TOO_LONG, endpoint, left, run } from "./probing.mjs";

const client = new Anthropic({ baseURL: endpoint, apiKey: "none" });
const ASKED = { model: MODEL, temperature: 0, max_tokens: TOKENS, messages: MESSAGES };
const TOOLS = {
  max_tokens: 64,
  tools: [{ name: "weather", description: "The weather.", input_schema: SCHEMA }],
  tool_choice: { type: "tool", name: "weather" },
};
const create = (changed) => client.messages.create({ ...ASKED, ...changed });
const streamed = (changed) => client.messages.stream({ ...ASKED, ...changed });
const about = (content) => ({ messages: [{ role: "user", content }] });

await run("@anthropic-ai/sdk", {
  answer: () => create(),
  "other routes": () => client.messages.countTokens({ model: MODEL, messages: MESSAGES }),
  stream: async () => {
    const stream = streamed();
    let text = "";
    stream.on("text", (piece) => (text += piece));
    return [await stream.finalMessage(), text];
  },
  "stream, usage": async () => {
    const usage = [];
    for await (const event of await create({ stream: true })) if (event.type === "message_delta") usage.push(event.usage);
    return usage;
  },
  "unknown model": () => create({ model: NO_MODEL }),
  "bad parameter": () => create({ max_tokens: -1 }),
  "prompt too long": () => create({ ...about(TOO_LONG), stream: true }),
  tool: async () => [await create(TOOLS), await streamed(TOOLS).finalMessage()],
  "many at once": () => Promise.all(QUESTIONS.map((text) => create(about(text)))),
  "left stream": async () => {
    const begin = async () => {
      for await (const event of await create({ max_tokens: LONG, stream: true })) {
        if (event.type === "content_block_delta") return true;
      }
      return false;
    };
    return [await left(begin), await create()];
  },
});
