//! A figure: what was measured, how often, and how far it spread.

use serde_json::json;

use crate::output::Output;

/// One metric with its values so far.
pub(super) struct Figure {
    bench: &'static str,
    metric: String,
    unit: &'static str,
    who: String,
    value: Option<f64>,
    values: Vec<f64>,
}

impl Figure {
    /// A figure of the benchmark `bench` whose value is the median of what is added.
    pub(super) fn new(bench: &'static str, metric: &str, unit: &'static str, who: &str) -> Self {
        Self { bench, metric: metric.to_owned(), unit, who: who.to_owned(), value: None, values: Vec::new() }
    }

    /// The same with a value that was worked out of `values`.
    pub(super) fn worth(self, value: f64, values: &[f64]) -> Self {
        Self { value: Some(value), values: values.to_vec(), ..self }
    }

    /// Adds a measurement.
    pub(super) fn add(&mut self, value: f64) {
        self.values.push(value);
    }

    /// Prints it as one line.
    pub(super) fn print(&self, output: Output) {
        let value = self.value.unwrap_or_else(|| percentile(&mut self.values.clone(), 50));
        let min = self.values.iter().copied().fold(f64::INFINITY, f64::min);
        let max = self.values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let (bench, metric, unit, who, n) = (self.bench, &self.metric, self.unit, &self.who, self.values.len());
        output.result(
            format_args!("{who:<10}{metric:<28}{value:>14.2} {unit:<6}n {n}, {min:.2} to {max:.2}"),
            &json!({
                "bench": bench, "metric": metric, "value": value, "unit": unit, "who": who,
                "n": n, "min": min, "max": max,
            }),
        );
    }
}

/// The value below which `share` percent of `values` lie (nearest rank). Sorts them.
pub(super) fn percentile(values: &mut [f64], share: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() * share).div_ceil(100).max(1);
    values.get(rank - 1).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let mut values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!([percentile(&mut values, 50), percentile(&mut values, 99)], [50.0, 99.0]);
        assert_eq!(percentile(&mut [3.0, 1.0, 2.0], 50), 2.0);
        assert_eq!(percentile(&mut [7.0], 99), 7.0);
    }
}
