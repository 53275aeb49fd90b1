"""Traces of the Splitwise simulator (arXiv:2311.18677; github.com/Mutinifni/splitwise-sim): CSV, seconds.

request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size
0,2,0,0.0171,1,512,128
"""

from __future__ import annotations

from traces.importers.traffic.base import CsvTraffic

SPLITWISE = CsvTraffic(
    format="Splitwise trace: CSV with arrival_timestamp, prompt_size, token_size",
    arrival="arrival_timestamp",
    prompt="prompt_size",
    output="token_size",
)
