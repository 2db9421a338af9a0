package block

import "golang.org/x/time/rate"

func unlimited() *rate.Limiter { return rate.NewLimiter(rate.Inf, 1<<30) }
