//! What each branch contributes to a result, although branches help or hinder each other: its
//! Shapley value, the mean of what it adds over all orders in which branches may be switched on
//! (Shapley, 1953). Parts add up to the whole.

/// Shapley values of the members of a set. `values[s]` is the result with the members in `s`, where
/// bit `i` of `s` stands for member `i`; `values[0]` is the result without any. The sum of all
/// values is `values[all] - values[0]`.
///
/// `None` unless there are 2^n results for some n up to 16.
#[must_use]
pub fn shapley(values: &[f64]) -> Option<Vec<f64>> {
    let members = values.len().checked_ilog2().filter(|members| *members <= 16)? as usize;
    if values.len() != 1 << members {
        return None;
    }
    let of = |member: usize| -> f64 {
        let without = (0..values.len()).filter(|set| set >> member & 1 == 0);
        let adds = without.map(|set| {
            let share = order_share(members, set.count_ones() as usize);
            share * (values[set | 1 << member] - values[set])
        });
        adds.sum()
    };
    Some((0..members).map(of).collect())
}

/// The share of all orders of `members` in which a member comes right behind a given set of
/// `before` others: before! (members - before - 1)! / members!.
fn order_share(members: usize, before: usize) -> f64 {
    let choices: f64 = (0..before).map(|i| (members - 1 - i) as f64 / (i + 1) as f64).product();
    1.0 / (choices * members as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn members_that_only_help_together_share_equally() {
        // A pair of gloves: a left one and two right ones.
        let pair = |set: usize| f64::from(u8::from(set & 1 == 1 && set & 6 != 0));
        let values: Vec<f64> = (0..8).map(pair).collect();
        let found = shapley(&values).unwrap();
        for (found, expected) in found.iter().zip([4.0 / 6.0, 1.0 / 6.0, 1.0 / 6.0]) {
            assert!((found - expected).abs() < 1e-12, "{found}");
        }
        assert_eq!(shapley(&[1.0, 3.5]), Some(vec![2.5]));
        assert_eq!(shapley(&[1.0]), Some(vec![]));
        assert_eq!((shapley(&[]), shapley(&[1.0, 2.0, 3.0])), (None, None));
    }

    proptest! {
        #[test]
        fn parts_add_up_to_the_whole(members in 0_usize..6, seed in proptest::collection::vec(-5.0_f64..5.0, 64)) {
            let values = &seed[..1 << members];
            let parts = shapley(values).unwrap();
            prop_assert_eq!(parts.len(), members);
            let whole = values[values.len() - 1] - values[0];
            prop_assert!((parts.iter().sum::<f64>() - whole).abs() < 1e-9);
            let product: f64 = parts.iter().map(|part| libm::exp(*part)).product();
            prop_assert!((product / libm::exp(whole) - 1.0).abs() < 1e-9);
        }

        #[test]
        fn what_adds_the_same_everywhere_gets_just_that(adds in proptest::collection::vec(-3.0_f64..3.0, 1..6)) {
            let of = |set: usize| -> f64 {
                adds.iter().enumerate().filter(|(i, _)| set >> i & 1 == 1).map(|(_, add)| add).sum()
            };
            let values: Vec<f64> = (0..1 << adds.len()).map(of).collect();
            for (part, add) in shapley(&values).unwrap().iter().zip(&adds) {
                prop_assert!((part - add).abs() < 1e-9);
            }
        }
    }
}
