"""`specbranch hrad`: collect data with a pair, train a predictor of acceptance, evaluate it on other prompts."""
