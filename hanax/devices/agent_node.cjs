// The part of agent.py that runs in node: onnxruntime-web's WebAssembly, with the timing loop next to it.
//
// Started as `node agent_node.cjs THREADS` with NODE_PATH naming the folder that holds onnxruntime-web. One request per
// line on stdin, one answer per line on stdout, in order. Sessions, inputs and outputs stay here and have numbers; a
// request lists in `drop` those that nobody needs any more.
"use strict";

const readline = require("node:readline");
const ort = require("onnxruntime-web");

ort.env.wasm.numThreads = Number(process.argv[2]);
ort.env.logLevel = "error";

const held = new Map();
let next = 0;

function hold(object) {
  held.set(++next, object);
  return { number: next };
}

const operations = {
  async load({ model }) {
    const session = await ort.InferenceSession.create(Buffer.from(model, "base64"), { executionProviders: ["wasm"] });
    if (session.inputNames.length !== 1) {
      await session.release();
      throw new Error(`the model has inputs ${session.inputNames}; expected exactly one`);
    }
    return hold(session);
  },

  async feed({ session, image, shape }) {
    const bytes = Buffer.from(image, "base64");
    const values = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
    return hold({ [held.get(session).inputNames[0]]: new ort.Tensor("float32", values, shape) });
  },

  async run({ session, input }) {
    return hold(await held.get(session).run(held.get(input)));
  },

  async fetch({ output }) {
    const outputs = Object.values(held.get(output)).map(({ data, dims }) => ({
      base64: Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString("base64"),
      shape: dims,
    }));
    return { outputs };
  },

  async bench({ session, input, inner_ms, inner_runs }) {
    const [model, feed] = [held.get(session), held.get(input)];
    const runs_ns = [];
    const cpu_started = process.cpuUsage();
    const started = process.hrtime.bigint();
    const end = started + BigInt(Math.trunc(inner_ms * 1e6));
    let now = started;
    while (now < end || runs_ns.length < inner_runs) {
      await model.run(feed);
      const before = now;
      now = process.hrtime.bigint();
      runs_ns.push(Number(now - before));
    }
    const cpu = process.cpuUsage(cpu_started);
    return { runs_ns, wall_ns: Number(now - started), cpu_ns: (cpu.user + cpu.system) * 1000 };
  },
};

async function answer(line) {
  try {
    const { op, drop, ...fields } = JSON.parse(line);
    for (const number of drop) {
      await held.get(number).release?.(); // a session has memory of its own
      held.delete(number);
    }
    return { result: await operations[op](fields) };
  } catch (error) {
    return { error: String(error?.message ?? error) };
  }
}

async function serve() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    process.stdout.write(JSON.stringify(await answer(line)) + "\n");
  }
}

serve();
