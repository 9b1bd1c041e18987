//! Measured values of one kind, in order.
#![allow(dead_code, reason = "each benchmark that includes this uses its own part of it")]

/// Values in ascending order, and how many never came.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    sorted: Vec<f64>,
    lost: usize,
}

impl Sample {
    /// Takes the values; infinite ones are those that never came.
    pub fn new(mut values: Vec<f64>) -> Sample {
        let all = values.len();
        values.retain(|value| !value.is_infinite());
        values.sort_by(f64::total_cmp);
        Sample { lost: all - values.len(), sorted: values }
    }

    /// The least value that at least this share (0 to 1) of those that came do not exceed; not a number where none came.
    pub fn quantile(&self, share: f64) -> f64 {
        let rank = (share * self.sorted.len() as f64).ceil() as usize;
        self.sorted.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
    }

    /// The middle value, or the mean of the two in the middle.
    pub fn median(&self) -> f64 {
        let middle = self.sorted.len() / 2;
        match self.sorted.len() {
            0 => f64::NAN,
            len if len % 2 == 1 => self.sorted[middle],
            _ => (self.sorted[middle - 1] + self.sorted[middle]) / 2.0,
        }
    }

    /// The mean; not a number where none came.
    pub fn mean(&self) -> f64 {
        self.sorted.iter().sum::<f64>() / self.sorted.len() as f64
    }

    /// The lowest and the highest value.
    pub fn range(&self) -> (f64, f64) {
        (self.sorted.first().copied().unwrap_or(f64::NAN), self.sorted.last().copied().unwrap_or(f64::NAN))
    }

    /// How many came.
    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    /// How many never came.
    pub fn lost(&self) -> usize {
        self.lost
    }
}
