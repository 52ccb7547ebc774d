//! Figures, and how they are judged and shown.

use std::time::Duration;

use serde_json::{Value, json};

/// Latencies of one thing, in the order they were taken.
#[derive(Clone)]
pub struct Sample(Vec<Duration>);

impl Sample {
    pub fn new(times: Vec<Duration>) -> Self {
        assert!(!times.is_empty(), "nothing was measured");
        Self(times)
    }

    fn at(&self, share: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index"
        )]
        let index = ((sorted.len() as f64 - 1.0) * share).round() as usize;
        sorted[index]
    }

    pub fn p50(&self) -> Duration {
        self.at(0.5)
    }

    pub fn p99(&self) -> Duration {
        self.at(0.99)
    }

    pub fn join(mut self, other: &Self) -> Self {
        self.0.extend(&other.0);
        self
    }
}

pub fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// A measured number and what it is judged by.
pub struct Figure {
    name: String,
    unit: &'static str,
    /// What is judged, and under which name.
    value: f64,
    statistic: &'static str,
    p50: Option<f64>,
    p99: Option<f64>,
    count: usize,
    target: Option<f64>,
    /// Larger is better.
    rate: bool,
    floors: Vec<(String, f64)>,
    notes: Vec<String>,
}

impl Figure {
    fn latency(name: &str, sample: &Sample, value: Duration, statistic: &'static str) -> Self {
        Self {
            name: name.to_owned(),
            unit: "ms",
            value: millis(value),
            statistic,
            p50: Some(millis(sample.p50())),
            p99: Some(millis(sample.p99())),
            count: sample.0.len(),
            target: None,
            rate: false,
            floors: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Judged by its median.
    pub fn p50(name: &str, sample: &Sample) -> Self {
        Self::latency(name, sample, sample.p50(), "p50")
    }

    /// Judged by its 99th percentile.
    pub fn p99(name: &str, sample: &Sample) -> Self {
        Self::latency(name, sample, sample.p99(), "p99")
    }

    /// One number, not a distribution.
    pub fn number(name: &str, value: f64, unit: &'static str) -> Self {
        Self {
            name: name.to_owned(),
            unit,
            value: (value * 1e3).round() / 1e3,
            statistic: "",
            p50: None,
            p99: None,
            count: 1,
            target: None,
            rate: false,
            floors: Vec::new(),
            notes: Vec::new(),
        }
    }

    pub fn rate(name: &str, value: f64, unit: &'static str) -> Self {
        Self {
            rate: true,
            ..Self::number(name, value, unit)
        }
    }

    /// In the figure's own unit.
    pub fn target(mut self, target: f64) -> Self {
        self.target = Some((target * 1e3).round() / 1e3);
        self
    }

    pub fn floor(mut self, name: &str, value: Duration) -> Self {
        self.floors.push((name.to_owned(), millis(value)));
        self
    }

    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// How far from the target: up to 1 is within.
    fn ratio(&self) -> Option<f64> {
        let target = self.target?;
        Some(if self.rate {
            target / self.value
        } else {
            self.value / target
        })
    }

    fn verdict(&self) -> &'static str {
        match self.ratio() {
            None => "",
            Some(ratio) if ratio <= 1.0 => "within",
            Some(ratio) if ratio <= 2.0 => "within 2x",
            Some(_) => "MISSED",
        }
    }

    fn json(&self) -> Value {
        let floors: Vec<_> = self
            .floors
            .iter()
            .map(|(name, value)| {
                json!({"name": name, "value": value, "ratio": round(self.value / value)})
            })
            .collect();
        json!({
            "name": self.name, "unit": self.unit, "value": self.value, "statistic": self.statistic,
            "p50": self.p50, "p99": self.p99, "count": self.count, "target": self.target,
            "of_target": self.ratio().map(round), "verdict": self.verdict(), "floors": floors,
            "notes": self.notes,
        })
    }

    fn row(&self) -> String {
        let value = if self.statistic.is_empty() {
            format!("{} {}", self.value, self.unit)
        } else {
            format!("{} {} {}", self.statistic, self.value, self.unit)
        };
        let other = match (self.statistic, self.p50, self.p99) {
            ("p50", _, Some(p99)) => format!("p99 {p99}"),
            ("p99", Some(p50), _) => format!("p50 {p50}"),
            _ => String::new(),
        };
        let sign = if self.rate { "≥" } else { "≤" };
        let target = self
            .target
            .map_or(String::new(), |target| format!("{sign} {target}"));
        let ratio = self.ratio().map_or(String::new(), |r| format!("{r:.2}"));
        let floors: Vec<_> = self
            .floors
            .iter()
            .map(|(name, floor)| format!("{name} {floor} (x{:.1})", self.value / floor))
            .chain(self.notes.iter().cloned())
            .collect();
        format!(
            "| {} | {value} | {other} | {target} | {ratio} | {} | {} |",
            self.name,
            self.verdict(),
            floors.join("; ")
        )
    }
}

fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// All figures of a run.
#[derive(Default)]
pub struct Report {
    pub conditions: Vec<String>,
    figures: Vec<Figure>,
}

impl Report {
    pub fn condition(&mut self, text: String) {
        eprintln!("{text}");
        self.conditions.push(text);
    }

    pub fn add(&mut self, figure: Figure) {
        eprintln!("{}", figure.row());
        self.figures.push(figure);
    }

    pub fn json(&self) -> Value {
        let figures: Vec<_> = self.figures.iter().map(Figure::json).collect();
        json!({"conditions": self.conditions, "figures": figures})
    }

    pub fn print(&self) {
        println!("{}\n", self.conditions.join("\n"));
        println!(
            "| figure | measured | | target | of target | verdict | floors of this run, notes |"
        );
        println!("| --- | ---: | ---: | ---: | ---: | --- | --- |");
        for figure in &self.figures {
            println!("{}", figure.row());
        }
    }

    /// Whether a figure is further from its target than twice.
    pub fn missed(&self) -> usize {
        self.figures
            .iter()
            .filter(|figure| figure.verdict() == "MISSED")
            .count()
    }
}
