// Parses the diagram on stdin with Mermaid, and prints each of its arrows as [from, to, text, whether it is dashed]. The folder with
// Mermaid and jsdom is in CHITCHAT_TEST_MERMAID. With --version it only loads them.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const folder = process.env.CHITCHAT_TEST_MERMAID;
const { JSDOM } = createRequire(`${folder}/`)("jsdom");
globalThis.window = new JSDOM("").window;
globalThis.document = window.document;
const { default: mermaid } = await import(`${folder}/node_modules/mermaid/dist/mermaid.core.mjs`);

if (process.argv[2] !== "--version") {
  const text = readFileSync(0, "utf8");
  await mermaid.parse(text);
  const { db } = await mermaid.mermaidAPI.getDiagramFromText(text);
  const name = (id) => db.getActor(id).description;
  // Mermaid keeps #59; as ﬂ°°59¶ß until it draws the text.
  const decode = (text) => text.replace(/ﬂ°°(\d+)¶ß/g, (_, code) => String.fromCodePoint(Number(code)));
  for (const { from, to, message, type } of db.getMessages()) {
    console.log(JSON.stringify([decode(name(from)), decode(name(to)), decode(message), type === 1]));
  }
}
