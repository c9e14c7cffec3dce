// A client for grpc-js that joins over TLS, says one thing, and leaves.
//
//     grpcjs_once.js ADDRESS CA_FILE PROTO_FOLDER [TOKEN]
//
// Prints what it receives, or exits with code 1 and prints the code and the message of the status.
"use strict";

const fs = require("node:fs");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [address, ca, protos, token] = process.argv.slice(2);
const options = { includeDirs: [protos], enums: String, defaults: true };
const { itu } = grpc.loadPackageDefinition(loader.loadSync("chat.proto", options));
const client = new itu.chitchat.ChatService(address, grpc.credentials.createSsl(fs.readFileSync(ca)));
const metadata = new grpc.Metadata();
if (token !== undefined) metadata.set("authorization", `Bearer ${token}`);
const call = client.Chat(metadata, { deadline: Date.now() + 30_000 });
call.on("data", (message) => console.log(message.msgStream));
call.on("error", (error) => {
    console.error(`${grpc.status[error.code]}: ${error.details}`);
    process.exitCode = 1;
});
call.on("end", () => client.close());
call.write({ clientName: "grpc-js", timestamp: 1, type: "JOIN" });
call.write({ msg: "Hello from grpc-js", timestamp: 2, type: "MESSAGE" });
call.end({ timestamp: 3, type: "LEAVE" });
