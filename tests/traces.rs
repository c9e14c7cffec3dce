//! The traces of a message, which real clients and a real server export to an OTLP collector.
// Helpers of tests panic as tests do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod collector;
mod process;

use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use collector::{Collector, Span};
use nix::sys::signal::Signal;
use process::{
    CHITCHAT, Process, Server, external_program, load_generator, run, serve_with, succeed, text,
    unused_address, wait_until,
};

const SERVER: i32 = 2;
const PRODUCER: i32 = 4;
const CONSUMER: i32 = 5;
const INTERNAL: i32 = 1;

/// The variables of a process that exports to this collector without delay.
fn exporting(endpoint: &str) -> [(&str, &str); 2] {
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
    ]
}

/// A server, and the collector to which it and its clients export.
struct Setup {
    collector: Collector,
    server: Server,
}

impl Setup {
    fn start(flags: &[&str], variables: &[(&str, &str)]) -> Self {
        let collector = Collector::start();
        let server = serve_with(flags, &[&exporting(&collector.endpoint), variables].concat());
        Self { collector, server }
    }

    fn client(&self, arguments: &[&str]) -> Command {
        client(self.server.address, &self.collector.endpoint, arguments)
    }

    /// Runs a client that must succeed, and returns its output.
    fn run(&self, arguments: &[&str], input: &str) -> String {
        succeed(&mut self.client(arguments), input)
    }

    /// Stops the server, which exports all that it has, and returns the collector.
    fn stop(mut self) -> Collector {
        self.server.stop();
        self.collector
    }
}

fn client(server: SocketAddr, endpoint: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(CHITCHAT);
    command
        .args(arguments)
        .env("CHITCHAT_SERVER", server.to_string())
        .env("CHITCHAT_ROOM", "tea")
        .envs(exporting(endpoint));
    command
}

fn value<'a>(span: &'a Span, name: &str) -> &'a str {
    span.attributes
        .get(name)
        .unwrap_or_else(|| panic!("no {name} in {span:#?}"))
}

fn number(span: &Span, name: &str) -> i64 {
    value(span, name).parse().unwrap()
}

/// The value of a series on a page of metrics.
fn metric(page: &str, series: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(series));
    line.unwrap_or_else(|| panic!("no {series} in {page}"))
        .trim()
        .parse()
        .unwrap()
}

fn is_message(span: &&Span) -> bool {
    let kind = span.attributes.get("chitchat.event.type");
    kind.is_some_and(|kind| kind == "message")
}

/// The trace and id of a span, as a link to it has them.
fn link(span: &Span) -> (String, String) {
    (span.trace.clone(), span.id.clone())
}

/// The spans of a message from Ada to Bob, Cleo and herself.
struct MessageSpans {
    /// The JOINs of Bob, Cleo and Ada.
    joins: Vec<Span>,
    send: Span,
    process: Span,
    append: Span,
    broadcast: Span,
    received: Vec<Span>,
}

impl MessageSpans {
    fn of(collector: &Collector) -> Self {
        let mut joins = collector.spans("join", 3);
        joins.sort_by_key(|join| number(join, "chitchat.sequence"));
        let process = collector.spans("process rooms/{room}", 1);
        let process = process.into_iter().find(|span| is_message(&span)).unwrap();
        let child = |name: &str| {
            let spans = collector.spans(name, 1).into_iter();
            let mut children = spans.filter(|span| is_message(&span) && span.parent == process.id);
            children.next().unwrap()
        };
        let received = collector.spans("receive rooms/{room}", 3).into_iter();
        Self {
            joins,
            send: collector.spans("send rooms/{room}", 1).remove(0),
            append: child("append"),
            broadcast: child("broadcast"),
            received: received.filter(|span| is_message(&span)).collect(),
            process,
        }
    }

    fn assert_parents_and_links(&self) {
        let (send, process) = (&self.send, &self.process);
        assert_eq!((send.kind, send.parent.as_str()), (PRODUCER, ""));
        assert_eq!(process.kind, CONSUMER);
        assert_eq!((&process.trace, &process.parent), (&send.trace, &send.id));
        let join = &self.joins[2];
        assert_eq!(process.links, [link(join)]);
        assert_eq!(join.kind, SERVER);
        for child in [&self.append, &self.broadcast] {
            assert_eq!((child.kind, &child.trace), (INTERNAL, &send.trace));
            assert!(
                process.start <= child.start && child.end <= process.end,
                "{child:#?} in {process:#?}"
            );
        }
        assert!(self.append.end <= self.broadcast.start);
        // Each of the three receivers has a trace of its own, linked to the sender's.
        assert_eq!(self.received.len(), 3);
        for span in &self.received {
            assert_eq!((span.kind, span.parent.as_str()), (CONSUMER, ""));
            assert_eq!(span.links, [link(send)]);
            assert_ne!(span.trace, send.trace);
        }
    }

    /// The Lamport time increases on the way of the message.
    fn assert_lamport_times(&self) {
        let sent = number(&self.send, "chitchat.lamport.time");
        let time = number(&self.process, "chitchat.lamport.time");
        assert_eq!(number(&self.process, "chitchat.lamport.received"), sent);
        assert!(time > sent, "{time} after {sent}");
        for span in &self.received {
            assert_eq!(number(span, "chitchat.lamport.received"), time);
            assert!(number(span, "chitchat.lamport.time") > time);
        }
    }

    fn assert_attributes(&self) {
        let join = &self.joins[2];
        assert_eq!(value(join, "rpc.system.name"), "grpc");
        assert_eq!(value(join, "rpc.method"), "itu.chitchat.ChatService/Chat");
        assert_eq!(value(&self.append, "messaging.batch.message_count"), "1");
        assert!(number(&self.append, "chitchat.store.bytes") > 13);
        assert_eq!(value(&self.broadcast, "chitchat.subscribers"), "3");
        assert_eq!(value(&self.broadcast, "chitchat.subscribers.behind"), "0");
        // All spans name the same message.
        let message_id = value(&self.send, "messaging.message.id");
        let spans = [&self.send, &self.process, &self.append, &self.broadcast];
        for span in spans.into_iter().chain(&self.received) {
            assert_eq!(value(span, "messaging.message.id"), message_id);
            assert_eq!(value(span, "chitchat.sequence"), "4");
            assert_eq!(value(span, "messaging.system"), "chitchat");
            assert_eq!(value(span, "messaging.destination.name"), "rooms/tea");
            assert_eq!(value(span, "messaging.destination.template"), "rooms/{room}");
            assert_eq!(value(span, "messaging.message.body.size"), "13");
            if span.kind != INTERNAL {
                assert!(
                    span.name.starts_with(value(span, "messaging.operation.type")),
                    "{span:#?}"
                );
            }
        }
        let resource = &self.process.resource;
        assert_eq!(resource["service.name"], "chitchat");
        assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(self.send.resource["service.name"], "chitchat-client");
    }
}

#[test]
fn a_message_has_one_trace_from_its_sender_to_its_receivers() {
    let setup = Setup::start(&[], &[]);
    let mut receivers: Vec<Process> = ["Bob", "Cleo"]
        .map(|name| {
            let receiver = Process::start(&mut setup.client(&["chat", "--name", name]));
            receiver.stdout_line(&format!("Participant {name} joined"));
            receiver
        })
        .into();
    setup.run(&["chat", "--name", "Ada"], "Hello, World!\n");
    for receiver in &mut receivers {
        receiver.stdout_line("Hello, World!");
        receiver.stdout_line("Participant Ada left");
        receiver.close_stdin();
        receiver.wait();
    }
    let collector = setup.stop();
    let spans = MessageSpans::of(&collector);
    spans.assert_parents_and_links();
    spans.assert_lamport_times();
    spans.assert_attributes();

    // A log line belongs to the trace of its stream. No message text is logged.
    let joined = collector.record("client_joined");
    assert_eq!((joined.trace, joined.span), link(&spans.joins[0]));
    assert_eq!(joined.body, "client joined");
    assert_eq!(collector.record("draining").resource["service.name"], "chitchat");
    let logged = format!("{:?}", collector.all_records());
    assert!(!logged.contains("Hello"), "{logged}");
}

#[test]
fn a_message_by_call_is_linked_to_the_call_and_its_reader_to_the_message() {
    let resource = [
        ("OTEL_SERVICE_NAME", "tearoom"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
    ];
    let setup = Setup::start(&[], &resource);
    setup.run(&["send", "--name", "Ada", "Hello"], "");
    setup.run(&["tail", "--count", "1"], "");
    let collector = setup.stop();
    let sent = &collector.spans("send rooms/{room}", 1)[0];
    let process = &collector.spans("process rooms/{room}", 1)[0];
    let call = &collector.spans("itu.chitchat.ChatService/SendMessage", 1)[0];
    let received = &collector.spans("receive rooms/{room}", 1)[0];
    assert_eq!((&process.trace, &process.parent), (&sent.trace, &sent.id));
    assert_eq!(process.links, [link(call)]);
    assert_eq!(received.links, [link(sent)]);
    assert_eq!(call.kind, SERVER);
    assert_eq!(value(call, "rpc.response.status_code"), "OK");
    assert_eq!(process.resource["service.name"], "tearoom");
    assert_eq!(process.resource["deployment.environment.name"], "test");
}

#[test]
fn the_span_of_a_rejected_message_has_the_reason_as_its_error() {
    let setup = Setup::start(&["--max-message-chars", "5"], &[]);
    // One on a stream, one by a call.
    run(&mut setup.client(&["chat", "--name", "Ada"]), "Hello, World!\n");
    let mut send = setup.client(&["send", "--name", "Bob", "Hello, World!"]);
    assert!(!run(&mut send, "").status.success());

    let sent = setup.collector.spans("send rooms/{room}", 2);
    let rejected: Vec<Span> = setup
        .collector
        // The third is Ada's LEAVE.
        .spans("process rooms/{room}", 3)
        .into_iter()
        .filter(|span| span.attributes.contains_key("error.type"))
        .collect();
    assert_eq!((sent.len(), rejected.len()), (2, 2), "{rejected:#?}");
    for process in &rejected {
        assert!(process.is_error && process.kind == CONSUMER);
        assert_eq!(value(process, "error.type"), "message_too_long");
        assert!(number(process, "chitchat.lamport.time") > 0);
        assert!(!process.attributes.contains_key("chitchat.sequence"));
        let send = sent.iter().find(|send| send.trace == process.trace).unwrap();
        assert_eq!(process.parent, send.id);
        assert_eq!(process.links.len(), 1);
    }
}

#[test]
fn a_message_without_a_trace_context_gets_one_from_the_server() {
    let setup = Setup::start(&[], &[]);
    let mut send = setup.client(&["send", "--name", "Ada", "Hello"]);
    succeed(send.env("OTEL_SDK_DISABLED", "true"), "");
    let collector = &setup.collector;
    let process = collector.spans("process rooms/{room}", 1).remove(0);
    assert_eq!(process.parent, "");
    let received = setup.run(&["tail", "--json", "--count", "1"], "");
    let links = collector.spans("receive rooms/{room}", 1).remove(0).links;
    assert_eq!(links, [link(&process)], "{received}");
    assert!(
        collector
            .all_spans()
            .iter()
            .all(|span| !span.name.starts_with("send "))
    );
}

#[test]
fn the_load_generator_exports_its_spans_as_a_sender() {
    let setup = Setup::start(&[], &[]);
    let collector = &setup.collector;
    let address = setup.server.address.to_string();
    let load = [
        "--server",
        &address,
        "--publishers",
        "1",
        "--subscribers",
        "1",
        "--count",
        "20",
    ];
    let mut generator = Command::new(load_generator());
    generator.args(load).envs(exporting(&collector.endpoint));
    succeed(&mut generator, "");
    let sent = collector.spans("send rooms/{room}", 20);
    let processed = collector.spans("process rooms/{room}", 20);
    for send in &sent {
        assert!(!send.is_error, "{send:#?}");
        let process = processed.iter().find(|process| process.parent == send.id);
        let process = process.unwrap_or_else(|| panic!("no child of {send:#?}"));
        assert_eq!(process.trace, send.trace);
        assert_eq!(
            number(process, "chitchat.lamport.received"),
            number(send, "chitchat.lamport.time")
        );
    }
}

#[test]
fn all_spans_are_exported_at_shutdown() {
    // Nothing is exported before the shutdown.
    let delayed = [
        ("OTEL_BSP_SCHEDULE_DELAY", "3600000"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "64"),
        ("OTEL_TRACES_SAMPLER", "always_on"),
    ];
    let setup = Setup::start(&[], &delayed);
    let lines: String = (0..200).map(|line| format!("line {line}\n")).collect();
    let mut chat = setup.client(&["chat", "--name", "Ada"]);
    succeed(chat.env("OTEL_BSP_SCHEDULE_DELAY", "3600000"), &lines);
    let collector = setup.stop();
    let messages = |name: &str| {
        let spans = collector.all_spans();
        let named = spans.iter().filter(|span| span.name == name);
        named.filter(is_message).count()
    };
    for name in [
        "send rooms/{room}",
        "process rooms/{room}",
        "append",
        "broadcast",
        "receive rooms/{room}",
    ] {
        assert_eq!(messages(name), 200, "{name}");
    }
    assert_eq!(collector.record("ended").body, "ended");
}

#[test]
fn an_unreachable_collector_is_counted_and_logged_once() {
    let unused = unused_address();
    let endpoint = format!("http://{unused}");
    let small_queue = [
        exporting(&endpoint).as_slice(),
        &[("OTEL_BSP_MAX_QUEUE_SIZE", "16")],
    ]
    .concat();
    let mut server = serve_with(&[], &small_queue);
    let lines: String = (0..300).map(|line| format!("line {line}\n")).collect();
    let mut sending = client(server.address, &endpoint, &["chat", "--name", "Ada"]);
    let output = run(sending.env("OTEL_SDK_DISABLED", "true"), &lines);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout).matches("line ").count(), 300);
    wait_until("the loss is counted", || {
        let lost = metric(
            &server.get("/metrics"),
            "chitchat_telemetry_dropped_total{signal=\"traces\"}",
        );
        // A JOIN, three spans for each of 300 messages, and possibly a LEAVE.
        (lost >= 901.0).then_some(())
    });
    server.log_line("\"event\":\"telemetry_lost\"");
    // When the collector is back, it receives the new spans.
    let collector = Collector::start_at(unused);
    wait_until("something is exported", || {
        let mut send = client(server.address, &endpoint, &["send", "--name", "Ada", "Hello"]);
        assert!(run(send.env("OTEL_SDK_DISABLED", "true"), "").status.success());
        (!collector.all_spans().is_empty()).then_some(())
    });
    server.log_line("\"event\":\"telemetry_exported\"");
    drop(collector);
    let started = Instant::now();
    server.stop();
    assert!(
        started.elapsed() < Duration::from_secs(8),
        "{:?}",
        started.elapsed()
    );
    let rest = server.rest_of_log();
    let stderr = rest
        .iter()
        .filter(|line| line.contains("telemetry_lost") && line.contains("traces"));
    assert_eq!(stderr.count(), 0, "{rest:#?}");

    // A client reports it too, and still sends its message.
    let server = serve_with(&[], &[]);
    let output = run(
        &mut client(server.address, &endpoint, &["send", "--name", "Ada", "Hello"]),
        "",
    );
    assert!(output.status.success());
    let stderr = text(&output.stderr);
    assert!(
        stderr.starts_with("chitchat: 1 spans could not be exported"),
        "{stderr}"
    );
}

/// The collector accepts connections and never answers.
#[test]
fn a_hanging_collector_delays_neither_client_nor_server() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let mut server = serve_with(&["--drain-timeout", "2s"], &exporting(&endpoint));
    let started = Instant::now();
    let output = run(
        &mut client(server.address, &endpoint, &["send", "--name", "Ada", "Hello"]),
        "",
    );
    assert!(output.status.success());
    // The client waits two seconds for its last export.
    assert!(
        started.elapsed() < Duration::from_secs(6),
        "{:?}",
        started.elapsed()
    );
    let stderr = text(&output.stderr);
    assert!(
        stderr.starts_with("chitchat: 1 spans could not be exported"),
        "{stderr}"
    );
    let started = Instant::now();
    server.stop();
    assert!(
        started.elapsed() < Duration::from_secs(6),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn a_server_with_a_disabled_sdk_exports_nothing() {
    let setup = Setup::start(&[], &[("OTEL_SDK_DISABLED", "true")]);
    let collector = &setup.collector;
    // The sender's context is still forwarded.
    setup.run(&["send", "--name", "Ada", "Hello"], "");
    let send = collector.spans("send rooms/{room}", 1).remove(0);
    setup.run(&["tail", "--count", "1"], "");
    let received = collector.spans("receive rooms/{room}", 1).remove(0);
    assert_eq!(received.links, [link(&send)]);
    assert_eq!(collector.all_spans().len(), 2, "{:#?}", collector.all_spans());
    assert!(collector.all_records().is_empty());
}

#[test]
fn the_traces_that_senders_request_are_rate_limited() {
    let limited = [
        ("OTEL_TRACES_SAMPLER", "parentbased_always_off"),
        ("CHITCHAT_TRACE_WISHES", "2"),
    ];
    let setup = Setup::start(&[], &limited);
    let lines: String = (0..100).map(|line| format!("line {line}\n")).collect();
    let started = Instant::now();
    setup.run(&["chat", "--name", "Ada"], &lines);
    let seconds = started.elapsed().as_secs_f64();
    let collector = setup.stop();
    assert_eq!(collector.spans("send rooms/{room}", 100).len(), 100);
    let recorded = collector.spans("process rooms/{room}", 2).len();
    assert!(
        recorded as f64 <= 2.0 * (seconds + 1.0) + 1.0,
        "{recorded} in {seconds} s"
    );
}

#[test]
fn invalid_exporter_settings_are_reported_with_the_other_errors() {
    let mut command = Command::new(CHITCHAT);
    command
        .args(["serve", "--in-memory", "--max-rooms", "0"])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost")
        .env("OTEL_TRACES_SAMPLER", "sometimes");
    let output = run(&mut command, "");
    assert_eq!(output.status.code(), Some(78));
    let stderr = text(&output.stderr);
    assert_eq!(stderr.lines().count(), 3, "{stderr}");
    assert!(
        stderr.contains("--max-rooms is 0") && stderr.contains("OTEL_TRACES_SAMPLER is \"sometimes\""),
        "{stderr}"
    );
}

#[test]
fn an_opentelemetry_collector_forwards_everything() {
    let Some(program) = external_program("CHITCHAT_TEST_OTELCOL", "otelcol", &["--version"]) else {
        return;
    };
    let collector = Collector::start();
    let endpoint = unused_address();
    let config = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    let target = collector.endpoint.strip_prefix("http://").unwrap();
    let pipeline = "{ receivers: [otlp], exporters: [otlp] }";
    let yaml = format!(
        "receivers: {{ otlp: {{ protocols: {{ grpc: {{ endpoint: \"{endpoint}\" }} }} }} }}\n\
         exporters: {{ otlp: {{ endpoint: \"{target}\", compression: none, tls: {{ insecure: true }} }} }}\n\
         service:\n  telemetry: {{ metrics: {{ level: none }} }}\n  pipelines: {{ traces: {pipeline}, logs: {pipeline} }}\n"
    );
    std::fs::write(config.path(), yaml).unwrap();
    let mut relay = Process::start(Command::new(program).arg("--config").arg(config.path()));
    relay.stderr_line("Everything is ready");
    let through = format!("http://{endpoint}");
    let mut server = serve_with(&[], &exporting(&through));
    let send = ["send", "--name", "Ada", "Hello"];
    succeed(&mut client(server.address, &through, &send), "");
    server.stop();
    let sent = collector.spans("send rooms/{room}", 1).remove(0);
    let process = collector.spans("process rooms/{room}", 1).remove(0);
    let append = collector.spans("append", 1).remove(0);
    assert_eq!((&process.trace, &process.parent), (&sent.trace, &sent.id));
    assert_eq!((&append.trace, &append.parent), (&sent.trace, &process.id));
    assert_eq!(collector.record("ended").resource["service.name"], "chitchat");
    relay.signal(Signal::SIGTERM);
    assert!(relay.wait().success());
}
