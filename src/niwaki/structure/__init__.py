"""Which of several variables depend on each other: forests, and predictors and surrogates that learn one."""
