//! Exporters that keep the books: what they could not export is counted.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry_otlp::{LogExporter, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{LogBatch, LogExporter as ExportLogs};
use opentelemetry_sdk::trace::{SpanData, SpanExporter as ExportSpans};

use super::losses::Ledger;

/// Exports through `E`, and keeps the books.
#[derive(Debug)]
pub(super) struct Booked<E> {
    exporter: E,
    ledger: Arc<Ledger>,
}

impl<E> Booked<E> {
    pub(super) const fn new(exporter: E, ledger: Arc<Ledger>) -> Self {
        Self { exporter, ledger }
    }

    fn book(&self, records: usize, result: &OTelSdkResult) {
        let failure = result.as_ref().err().map(ToString::to_string);
        self.ledger.settle(records, failure.as_deref());
    }
}

impl ExportSpans for Booked<SpanExporter> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let records = batch.len();
        let result = self.exporter.export(batch).await;
        self.book(records, &result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl ExportLogs for Booked<LogExporter> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        let records = batch.iter().count();
        let result = self.exporter.export(batch).await;
        self.book(records, &result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
