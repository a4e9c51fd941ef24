// The same service on Moleculer, for comparison. Prints a JSON object per figure, as `callboard bench --json` does.
//
//   node peer.js local            ask the service in this process
//   node peer.js serve BROKER     run the service, and measure the events that it receives
//   node peer.js call BROKER      ask the service of another process, one at a time and 64 at a time
//   node peer.js emit BROKER      send events to the service of another process
//   node peer.js web BROKER PORT  run the gateway; with "-" for BROKER, the service runs in its process
const { ServiceBroker } = require("moleculer");

const [role, address, port] = process.argv.slice(2);
const transporter = !address || address === "-" ? null : address;
const broker = new ServiceBroker({ nodeID: `${role}-${process.pid}`, logger: false, metrics: false, transporter });
const EVENTS = 100000;
let received = 0;
let first;

const report = (name, rate) => console.log(JSON.stringify({ name, rate: Math.round(rate) }));
const seconds = start => Number(process.hrtime.bigint() - start) / 1e9;

const math = {
  name: "math",
  actions: { add: { params: { a: { type: "number", convert: true } }, handler: ctx => ({ s: ctx.params.a + 1 }) } },
  events: {
    tick() {
      first ??= process.hrtime.bigint();
      if (++received === EVENTS) report("events", EVENTS / seconds(first));
    },
  },
};

async function rate(count, callers) {
  const calls = async number => { for (let a = 0; a < number; a++) await broker.call("math.add", { a }); };
  const start = process.hrtime.bigint();
  await Promise.all(Array.from({ length: callers }, () => calls(Math.floor(count / callers))));
  return count / seconds(start);
}

const roles = {
  async local() {
    await rate(50000, 1);
    report("local_c1", await rate(500000, 1));
  },
  async call() {
    await broker.waitForServices("math");
    await rate(2000, 1);
    report("request_c1", await rate(5000, 1));
    await rate(8000, 64);
    report("request_c64", await rate(64000, 64));
  },
  async emit() {
    await broker.waitForServices("math");
    for (let number = 0; number < EVENTS; number++) {
      broker.emit("tick", { number });
      if (number % 200 === 0) await new Promise(resolve => setImmediate(resolve));
    }
    await broker.stop();
  },
};

async function main() {
  process.stdin.on("end", () => process.exit(0)).resume(); // ends with the process that started it
  if (role === "local" || role === "serve" || (role === "web" && !transporter)) broker.createService(math);
  if (role === "web") broker.createService({
    mixins: [require("moleculer-web")],
    settings: { port: Number(port), ip: "127.0.0.1", logging: false, logRequestParams: null,
      routes: [{ path: "/", aliases: { "GET add/:a": "math.add" }, bodyParsers: false }] },
  });
  await broker.start();
  if (roles[role]) {
    await roles[role]();
    process.exit(0);
  }
  console.log("ready");
}

main();
