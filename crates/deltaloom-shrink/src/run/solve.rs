//! Which form each tensor gets, when all of them together may take so many bits. It knows nothing
//! of weights: a tensor is a list of choices.

use super::candidates::Candidate;

/// One of the choices that a tensor has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Choice {
    /// How it is stored.
    pub(super) candidate: Candidate,
    /// Bits that it then takes.
    pub(super) bits: f64,
    /// Divergence that it is expected to cost, in nats per token.
    pub(super) cost: f64,
}

/// A tensor and its choices, of which there is at least one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tensor {
    /// Its name.
    pub(super) name: String,
    /// Number of elements.
    pub(super) weights: usize,
    /// What it may become.
    pub(super) choices: Vec<Choice>,
}

/// How often an interval is halved.
const HALVINGS: usize = 60;
/// Natural logarithms of the least and the largest price of a bit, in nats per token.
const PRICES: [f64; 2] = [-60.0, 10.0];

/// A choice for each tensor: of least cost together, among those that take at most `bits`. With
/// less than the smallest choices take, it is these.
///
/// The choices of least cost plus price times bits are best for the bits that they take (Everett,
/// 1963). Bits that are left over then go where they save most.
pub(super) fn solve(tensors: &[Tensor], bits: f64) -> Vec<&Choice> {
    let [mut low, mut high] = PRICES;
    if taken(&at_price(tensors, libm::exp(low))) <= bits {
        high = low;
    }
    for _ in 0..HALVINGS {
        let middle = (low + high) / 2.0;
        let is_too_large = taken(&at_price(tensors, libm::exp(middle))) > bits;
        *(if is_too_large { &mut low } else { &mut high }) = middle;
    }
    let mut chosen = at_price(tensors, libm::exp(high));
    let mut left = bits - taken(&chosen);
    while let Some((number, choice)) = best_step(tensors, &chosen, left) {
        left -= choice.bits - chosen[number].bits;
        chosen[number] = choice;
    }
    chosen
}

/// What choices cost together.
pub(super) fn cost(chosen: &[&Choice]) -> f64 {
    chosen.iter().map(|choice| choice.cost).sum()
}

/// Bits that choices take together.
pub(super) fn taken(chosen: &[&Choice]) -> f64 {
    chosen.iter().map(|choice| choice.bits).sum()
}

/// The fewest bits with which all tensors together cost at most `limit`, or the most that are of
/// use.
pub(super) fn bits_for(tensors: &[Tensor], limit: f64) -> f64 {
    let most = taken(&at_price(tensors, libm::exp(PRICES[0])));
    let (mut low, mut high) = (0.0, most);
    for _ in 0..HALVINGS {
        let middle = (low + high) / 2.0;
        let is_too_few = cost(&solve(tensors, middle)) > limit;
        *(if is_too_few { &mut low } else { &mut high }) = middle;
    }
    high
}

fn at_price(tensors: &[Tensor], price: f64) -> Vec<&Choice> {
    let total = |choice: &Choice| choice.cost + price * choice.bits;
    let all = tensors.iter();
    all.filter_map(|tensor| tensor.choices.iter().min_by(|a, b| total(a).total_cmp(&total(b)))).collect()
}

/// The change of one choice that saves most for each bit more, of those that fit.
fn best_step<'a>(tensors: &'a [Tensor], chosen: &[&Choice], left: f64) -> Option<(usize, &'a Choice)> {
    let steps = tensors.iter().zip(chosen).enumerate().flat_map(|(number, (tensor, now))| {
        let fits = move |choice: &&Choice| {
            let more = choice.bits - now.bits;
            more > 0.0 && more <= left && choice.cost < now.cost
        };
        let rate = |choice: &Choice| (now.cost - choice.cost) / (choice.bits - now.bits);
        tensor.choices.iter().filter(fits).map(move |choice| (rate(choice), number, choice))
    });
    let best = steps.max_by(|(a, ..), (b, ..)| a.total_cmp(b));
    best.map(|(_, number, choice)| (number, choice))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, weights: usize, scale: f64) -> Tensor {
        // A quarter of the error for each bit.
        let choice = |step: u32| {
            let rate = f64::from(step) / 20.0;
            let candidate = if step == 0 { Candidate::Zero } else { Candidate::Codes { rate } };
            Choice { candidate, bits: rate * weights as f64, cost: scale * libm::exp2(-2.0 * rate) }
        };
        Tensor { name: name.to_owned(), weights, choices: (0..=140).map(choice).collect() }
    }

    fn rates(tensors: &[Tensor], bits: f64) -> Vec<f64> {
        let chosen = solve(tensors, bits);
        chosen.iter().zip(tensors).map(|(choice, tensor)| choice.bits / tensor.weights as f64).collect()
    }

    #[test]
    fn bits_go_where_they_save_most() {
        let tensors = [tensor("a", 1000, 1.0), tensor("b", 1000, 16.0), tensor("c", 500, 1.0)];
        let [a, b, c] = rates(&tensors, 5000.0)[..] else { panic!("a choice for each tensor") };
        // 16 times the cost is worth 2 bits more; half of the weights, half a bit more.
        assert!((b - a - 2.0).abs() < 0.11 && (c - a - 0.5).abs() < 0.11, "{a} {b} {c}");
        let used = taken(&solve(&tensors, 5000.0));
        assert!(used <= 5000.0 && used > 4970.0, "{used}");
        assert!(rates(&tensors, 0.0).iter().all(|rate| *rate == 0.0));
        assert!(rates(&tensors, -1.0).iter().all(|rate| *rate == 0.0));
        assert!(rates(&tensors, 1e9).iter().all(|rate| *rate > 6.9));
    }

    #[test]
    fn no_single_change_that_fits_is_better() {
        let choice = |bits, cost| Choice { candidate: Candidate::Zero, bits, cost };
        // The second tensor has a choice above the line of the others.
        let tensors = [
            Tensor { name: "a".into(), weights: 1, choices: vec![choice(0.0, 9.0), choice(10.0, 1.0)] },
            Tensor {
                name: "b".into(),
                weights: 1,
                choices: vec![choice(0.0, 8.0), choice(3.0, 7.5), choice(10.0, 1.0)],
            },
        ];
        assert_eq!(cost(&solve(&tensors, 13.0)), 8.5);
        assert_eq!(cost(&solve(&tensors, 20.0)), 2.0);
        assert_eq!(cost(&solve(&tensors, 9.0)), 16.5);
    }

    #[test]
    fn the_fewest_bits_for_a_cost_are_found() {
        let tensors = [tensor("a", 1000, 1.0), tensor("b", 1000, 16.0)];
        let bits = bits_for(&tensors, 0.5);
        assert!(cost(&solve(&tensors, bits)) <= 0.5);
        assert!(cost(&solve(&tensors, bits - 100.0)) > 0.5);
        // More than any choice can reach.
        assert!(bits_for(&tensors, 0.0) >= 13_900.0);
    }
}
