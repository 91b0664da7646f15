// SPDX-License-Identifier: Apache-2.0
// node client.js ADDRESS4 ADDRESS6: connects as Node.js programs do, and prints as whom it was seen, a line each.
const http = require("http");
const dgram = require("dgram");
const dns = require("dns");
const [four, six] = process.argv.slice(2);

function get(host) {
  return new Promise((resolve, reject) => {
    http.get({ host, port: 80, agent: false }, (answer) => {
      let text = "";
      answer.on("data", (part) => (text += part));
      answer.on("end", () => resolve(text));
    }).on("error", reject);
  });
}

function question() {
  // An unconnected socket: the port is bound by the first send.
  return new Promise((resolve, reject) => {
    const made = dgram.createSocket("udp4");
    made.on("message", () => { made.close(); resolve("answered"); });
    made.on("error", reject);
    made.send(Buffer.from("000101000001000000000000016100" + "00010001", "hex"), 53, four);
  });
}

async function main() {
  console.log("v4", await get(four));
  console.log("v6", await get(six));
  console.log("mapped", await get("::ffff:" + four));
  console.log("udp", await question());
  const resolver = new dns.promises.Resolver();
  resolver.setServers([four]);
  console.log("dns", (await resolver.resolve4("web.example"))[0]);
}

main().catch((error) => { console.error(error); process.exit(1); });
