"""Policies for scripts: those of the catalog, what a policy of one's own is made of, and labels."""

from sim.decoding.policies.base import Defaults, Hedges, Needs, Observation, Policy, Verdict
from sim.decoding.policies.catalog import label_of, parse_policies, parse_policy
from sim.decoding.policies.overlapped.outcome_hedging import OutcomeHedging
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.overlapped.saguaro import Saguaro
from sim.decoding.policies.overlapped.specbranch import SpecBranch
from sim.decoding.policies.serial.adaedl import AdaEdl
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.decoding.policies.serial.confidence_stop import ConfidenceStop
from sim.decoding.policies.serial.fixed_length import FixedLength
from sim.decoding.policies.serial.product_rule import ProductRule
from sim.decoding.policies.serial.prompt_lookup import PromptLookup
from traces.schema import Signal

__all__ = [
    "AdaEdl",
    "Autoregressive",
    "ConfidenceStop",
    "Defaults",
    "FixedLength",
    "Hedges",
    "Needs",
    "Observation",
    "OutcomeHedging",
    "Pearl",
    "Policy",
    "ProductRule",
    "PromptLookup",
    "Saguaro",
    "Signal",
    "SpecBranch",
    "Verdict",
    "label_of",
    "parse_policies",
    "parse_policy",
]
